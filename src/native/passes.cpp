// The loops of passes.h. Everything is in an unnamed namespace and nothing of the standard library is used: a function
// shared between the builds for different processors could be linked from the wrong one.

#include "passes.h"

namespace {

// Rows that are worked on at once: their part of the map stays in the cache while blocks of channels go over it, and
// their sums are short enough to be kept in T, in registers, before they are added to doubles.
constexpr int64_t TILE = 128;

#define INLINE inline __attribute__((always_inline))

// Calls block.run<W>(c, first, last) for all channels and rows: W channels from c on, as wide as fits.
template <typename Block>
INLINE void over_tiles(Block block, int64_t channels, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row += TILE) {
        const int64_t end = row + TILE < last ? row + TILE : last;
        int64_t c = 0;
        for (; c + 16 <= channels; c += 16) block.template run<16>(c, row, end);
        for (; c + 8 <= channels; c += 8) block.template run<8>(c, row, end);
        for (; c + 4 <= channels; c += 4) block.template run<4>(c, row, end);
        for (; c < channels; c++) block.template run<1>(c, row, end);
    }
}

template <typename T, int W>
struct Lane {
    T value[W];
    INLINE explicit Lane(const T* from) {
        for (int j = 0; j < W; j++) value[j] = from[j];
    }
};

template <typename T>
struct Moments {
    const T* x;
    const T* centre;
    int64_t channels;
    double* sums;

    template <int W>
    INLINE void run(int64_t c, int64_t first, int64_t last) const {
        const Lane<T, W> middle(centre + c);
        T sum[W] = {}, squares[W] = {};
        for (int64_t r = first; r < last; r++) {
            const T* at = x + r * channels + c;
            for (int j = 0; j < W; j++) {
                const T d = at[j] - middle.value[j];
                sum[j] += d;
                squares[j] += d * d;
            }
        }
        for (int j = 0; j < W; j++) {
            sums[c + j] += sum[j];
            sums[channels + c + j] += squares[j];
        }
    }
};

// The scales and the shift of W channels, and the value before the clamp.
template <typename T, int W, int N>
struct Affine {
    T scale[N][W], shift[W];
    INLINE Affine(const Terms<T>& t, int64_t c) {
        for (int j = 0; j < W; j++) shift[j] = t.shift[c + j];
        for (int i = 0; i < N; i++)
            for (int j = 0; j < W; j++) scale[i][j] = t.scale[i][c + j];
    }
    INLINE T value(const Terms<T>& t, int64_t at, int j) const {
        T sum = shift[j];
        for (int i = 0; i < N; i++) sum += scale[i][j] * t.x[i][at + j];
        return sum;
    }
    // The gradient before the clamp: dy where the clamp let its input through. A NaN passes both ways, as in libtorch.
    INLINE T gradient(const Terms<T>& t, int64_t at, int j, const T* dy) const {
        const T before = value(t, at, j);
        return (before <= t.low || before >= t.high) ? T(0) : dy[at + j];
    }
};

template <typename T, int N>
struct Forward {
    const Terms<T>& t;
    T* y;

    template <int W>
    INLINE void run(int64_t c, int64_t first, int64_t last) const {
        const Affine<T, W, N> affine(t, c);
        for (int64_t r = first; r < last; r++) {
            const int64_t at = r * t.channels + c;
            for (int j = 0; j < W; j++) {
                const T value = affine.value(t, at, j);
                y[at + j] = value < t.low ? t.low : (value > t.high ? t.high : value);
            }
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
        const Affine<T, W, N> affine(t, c);
        T centre[N][W], sum[W] = {}, products[N][W] = {};
        for (int i = 0; i < N; i++)
            for (int j = 0; j < W; j++) centre[i][j] = t.centre[i][c + j];
        for (int64_t r = first; r < last; r++) {
            const int64_t at = r * t.channels + c;
            for (int j = 0; j < W; j++) {
                const T g = affine.gradient(t, at, j, dy);
                sum[j] += g;
                for (int i = 0; i < N; i++) products[i][j] += g * (t.x[i][at + j] - centre[i][j]);
            }
        }
        for (int j = 0; j < W; j++) {
            sums[c + j] += sum[j];
            for (int i = 0; i < N; i++) sums[(1 + i) * t.channels + c + j] += products[i][j];
        }
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
        const Affine<T, W, N> affine(t, c);
        T a[N][W], b[N][W];
        for (int i = 0; i < N; i++)
            for (int j = 0; j < W; j++) a[i][j] = slope[i][c + j], b[i][j] = offset[i][c + j];
        for (int64_t r = first; r < last; r++) {
            const int64_t at = r * t.channels + c;
            for (int j = 0; j < W; j++) {
                const T g = affine.gradient(t, at, j, dy);
                for (int i = 0; i < N; i++) {
                    dx[i][at + j] = affine.scale[i][j] * g + (a[i][j] * t.x[i][at + j] + b[i][j]);
                }
            }
        }
    }
};

template <typename T>
void moments(const T* x, const T* centre, int64_t channels, int64_t first, int64_t last, double* sums) {
    over_tiles(Moments<T>{x, centre, channels, sums}, channels, first, last);
}

// The number of terms becomes a constant, so that the loops over them are unrolled.
template <typename T, template <typename, int> class Pass, typename... Args>
INLINE void dispatch(const Terms<T>& t, int64_t first, int64_t last, Args... args) {
    switch (t.n) {
        case 1: return over_tiles(Pass<T, 1>{t, args...}, t.channels, first, last);
        case 2: return over_tiles(Pass<T, 2>{t, args...}, t.channels, first, last);
        case 3: return over_tiles(Pass<T, 3>{t, args...}, t.channels, first, last);
        case 4: return over_tiles(Pass<T, 4>{t, args...}, t.channels, first, last);
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
