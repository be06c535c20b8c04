// The loops of passes.h, built once for each generation of processors (see lanes.h).

#include "passes.h"

#include "lanes.h"

namespace {

// Number of rows processed at once: their part of the map stays in the cache while blocks of
// channels are processed, and their sums are short enough to be kept in T, in registers, before
// they are added to doubles.
constexpr int64_t TILE = 128;

// Calls block.run<W>(c, first, last) for the channels from c on, W at a time, and for the rest with
// half the width.
template <int W, typename Block>
INLINE void over_channels(Block block, int64_t c, int64_t channels, int64_t first, int64_t last) {
    for (; c + W <= channels; c += W) block.template run<W>(c, first, last);
    if constexpr (W > 1) over_channels<W / 2>(block, c, channels, first, last);
}

// Calls block.run for all channels and rows, one tile of rows after the other.
template <typename T, typename Block>
INLINE void over_tiles(Block block, int64_t channels, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row += TILE) {
        const int64_t end = row + TILE < last ? row + TILE : last;
        over_channels<VECTOR_BYTES / sizeof(T)>(block, 0, channels, row, end);
    }
}

template <typename T>
struct Moments {
    const T* x;
    const T* centre;
    int64_t channels;
    double* sums;

    template <int W>
    INLINE void run(int64_t c, int64_t first, int64_t last) const {
        using L = Lanes<T, W>;
        const typename L::V middle = L::load(centre + c);
        typename L::V sum = {}, squares = {};
        for (int64_t r = first; r < last; r++) {
            const typename L::V d = L::load(x + r * channels + c) - middle;
            sum += d;
            squares += d * d;
        }
        L::add(sums + c, sum);
        L::add(sums + channels + c, squares);
    }
};

// The affine map of W channels of N terms.
template <typename T, int W, int N>
struct Affine {
    using L = Lanes<T, W>;
    using V = typename L::V;
    V scale[N], shift, low, high;

    INLINE Affine(const Terms<T>& t, int64_t c) : shift(L::load(t.shift + c)), low(L::splat(t.low)), high(L::splat(t.high)) {
        for (int i = 0; i < N; i++) scale[i] = L::load(t.scale[i] + c);
    }

    // Returns the input of the clamp, and the values of the maps in x.
    INLINE V value(const Terms<T>& t, int64_t at, V (&x)[N]) const {
        V sum = shift;
        for (int i = 0; i < N; i++) {
            x[i] = L::load(t.x[i] + at);
            sum += scale[i] * x[i];
        }
        return sum;
    }

    // Clamps a value. A NaN passes, as in libtorch.
    INLINE V clamp(V value) const {
        value = value < low ? low : value;
        return value > high ? high : value;
    }

    // Returns the gradient before the clamp: dy if the clamp is inactive, else 0.
    INLINE V gradient(const Terms<T>& t, const T* dy, int64_t at, V (&x)[N]) const {
        const V before = value(t, at, x);
        const V after = before <= low ? V{} : L::load(dy + at);
        return before >= high ? V{} : after;
    }
};

template <typename T, int N>
struct Forward {
    const Terms<T>& t;
    T* y;

    template <int W>
    INLINE void run(int64_t c, int64_t first, int64_t last) const {
        using A = Affine<T, W, N>;
        const A affine(t, c);
        for (int64_t r = first; r < last; r++) {
            const int64_t at = r * t.channels + c;
            typename A::V x[N];
            A::L::store(y + at, affine.clamp(affine.value(t, at, x)));
        }
    }
};

template <typename T, int N>
struct Sums {
    const Terms<T>& t;
    const T* dy;
    double* sums;

    template <int W>
    INLINE void run(int64_t c, int64_t first, int64_t last) const {
        using A = Affine<T, W, N>;
        const A affine(t, c);
        typename A::V x[N], centre[N], sum = {}, products[N] = {};
        for (int i = 0; i < N; i++) centre[i] = A::L::load(t.centre[i] + c);
        for (int64_t r = first; r < last; r++) {
            const typename A::V g = affine.gradient(t, dy, r * t.channels + c, x);
            sum += g;
            for (int i = 0; i < N; i++) products[i] += g * (x[i] - centre[i]);
        }
        A::L::add(sums + c, sum);
        for (int i = 0; i < N; i++) A::L::add(sums + (1 + i) * t.channels + c, products[i]);
    }
};

template <typename T, int N>
struct Backward {
    const Terms<T>& t;
    const T* dy;
    const T* const* slope;
    const T* const* offset;
    T* const* dx;

    template <int W>
    INLINE void run(int64_t c, int64_t first, int64_t last) const {
        using A = Affine<T, W, N>;
        const A affine(t, c);
        typename A::V x[N], a[N], b[N];
        for (int i = 0; i < N; i++) a[i] = A::L::load(slope[i] + c), b[i] = A::L::load(offset[i] + c);
        for (int64_t r = first; r < last; r++) {
            const int64_t at = r * t.channels + c;
            const typename A::V g = affine.gradient(t, dy, at, x);
            for (int i = 0; i < N; i++) A::L::store(dx[i] + at, affine.scale[i] * g + (a[i] * x[i] + b[i]));
        }
    }
};

template <typename T>
void moments(const T* x, const T* centre, int64_t channels, int64_t first, int64_t last, double* sums) {
    over_tiles<T>(Moments<T>{x, centre, channels, sums}, channels, first, last);
}

// Makes the number of terms a compile-time constant, so that the loops over them are unrolled.
template <typename T, template <typename, int> class Pass, typename... Args>
INLINE void dispatch(const Terms<T>& t, int64_t first, int64_t last, Args... args) {
    switch (t.n) {
        case 1: return over_tiles<T>(Pass<T, 1>{t, args...}, t.channels, first, last);
        case 2: return over_tiles<T>(Pass<T, 2>{t, args...}, t.channels, first, last);
        case 3: return over_tiles<T>(Pass<T, 3>{t, args...}, t.channels, first, last);
        case 4: return over_tiles<T>(Pass<T, 4>{t, args...}, t.channels, first, last);
    }
}

template <typename T>
void forward(const Terms<T>& t, int64_t first, int64_t last, T* y) {
    dispatch<T, Forward>(t, first, last, y);
}

template <typename T>
void sums(const Terms<T>& t, const T* dy, int64_t first, int64_t last, double* sums) {
    dispatch<T, Sums>(t, first, last, dy, sums);
}

template <typename T>
void backward(const Terms<T>& t, const T* dy, const T* const* slope, const T* const* offset, int64_t first, int64_t last,
              T* const* dx) {
    dispatch<T, Backward>(t, first, last, dy, slope, offset, dx);
}

}  // namespace

#define JOIN(a, b) a##b
#define DEFINE_PASSES(T, name) const Passes<T> name = {moments<T>, forward<T>, sums<T>, backward<T>};
#define DEFINE(processor)                          \
    DEFINE_PASSES(float, JOIN(float_, processor))  \
    DEFINE_PASSES(double, JOIN(double_, processor))
DEFINE(PROCESSOR)
