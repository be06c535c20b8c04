// The loops of products.h, built once for each generation of processors (see lanes.h). Each keeps a
// block of its result in registers: some rows by N vectors of W numbers.

#include "products.h"

#include "lanes.h"

namespace {

#if defined(__AVX512F__)
constexpr bool MANY_REGISTERS = true;
#else
constexpr bool MANY_REGISTERS = false;
#endif

// Maximum number of vectors per row of a block, and number of rows of a block with `vectors`
// vectors per row: as many as leave registers for a row of b.
constexpr int WIDEST = MANY_REGISTERS ? 4 : 2;
constexpr int rows_for(int vectors) { return MANY_REGISTERS ? (vectors == 1 ? 16 : vectors == 2 ? 12 : 6) : vectors == 1 ? 8 : 4; }

// Calls block.run<W, N>(c) for the columns from c on, N vectors of W numbers at a time, and for the
// rest with fewer.
template <int W, int N, typename Block>
INLINE void over_columns(const Block& block, int64_t c, int64_t n) {
    for (; c + W * N <= n; c += W * N) block.template run<W, N>(c);
    if constexpr (N > 1)
        over_columns<W, N / 2>(block, c, n);
    else if constexpr (W > 1)
        over_columns<W / 2, 1>(block, c, n);
}

// Calls block.rows<W, N, R>(c, at) for `count` rows, R at a time, then 4, then one.
template <int W, int N, typename Block>
INLINE void over_rows(const Block& block, int64_t c, int64_t count) {
    constexpr int R = rows_for(N);
    int64_t at = 0;
    for (; at + R <= count; at += R) block.template rows<W, N, R>(c, at);
    for (; at + 4 <= count; at += 4) block.template rows<W, N, 4>(c, at);
    for (; at < count; at++) block.template rows<W, N, 1>(c, at);
}

template <typename T>
struct Multiply {
    const T* x;
    int64_t k;
    const T* b;
    int64_t n;
    const T* shift; // if null, the product is added to out
    T low, high;
    int64_t count;
    T* out;

    template <int W, int N>
    INLINE void run(int64_t c) const {
        over_rows<W, N>(*this, c, count);
    }

    template <int W, int N, int R>
    INLINE void rows(int64_t c, int64_t at) const {
        using L = Lanes<T, W>;
        using V = typename L::V;
        const T* from = x + at * k;
        T* to = out + at * n + c;
        V sum[R][N];
        for (int r = 0; r < R; r++)
            for (int j = 0; j < N; j++) sum[r][j] = L::load(shift ? shift + c + j * W : to + r * n + j * W);
        for (int64_t p = 0; p < k; p++) {
            V row[N];
            for (int j = 0; j < N; j++) row[j] = L::load(b + p * n + c + j * W);
            for (int r = 0; r < R; r++) {
                const V factor = L::splat(from[r * k + p]);
                for (int j = 0; j < N; j++) sum[r][j] += factor * row[j];
            }
        }
        const V lowest = L::splat(low), highest = L::splat(high);
        for (int r = 0; r < R; r++)
            for (int j = 0; j < N; j++) {
                // A NaN passes, as in libtorch.
                const V above = sum[r][j] < lowest ? lowest : sum[r][j];
                L::store(to + r * n + j * W, above > highest ? highest : above);
            }
    }
};

template <typename T>
struct Outer {
    const T* a;
    int64_t k;
    const T* b;
    int64_t n, count;
    double* sums;

    template <int W, int N>
    INLINE void run(int64_t c) const {
        over_rows<W, N>(*this, c, k);
    }

    template <int W, int N, int R>
    INLINE void rows(int64_t c, int64_t at) const {
        using L = Lanes<T, W>;
        using V = typename L::V;
        V sum[R][N] = {};
        for (int64_t p = 0; p < count; p++) {
            V row[N];
            for (int j = 0; j < N; j++) row[j] = L::load(b + p * n + c + j * W);
            for (int r = 0; r < R; r++) {
                const V factor = L::splat(a[p * k + at + r]);
                for (int j = 0; j < N; j++) sum[r][j] += factor * row[j];
            }
        }
        for (int r = 0; r < R; r++)
            for (int j = 0; j < N; j++) L::add(sums + (at + r) * n + c + j * W, sum[r][j]);
    }
};

template <typename T>
struct Centred {
    const T *x, *centre;
    int64_t n, count;
    T* out;
    double* sums;

    template <int W, int N>
    INLINE void run(int64_t c) const {
        using L = Lanes<T, W>;
        const typename L::V middle = L::load(centre + c);
        typename L::V sum = {};
        for (int64_t r = 0; r < count; r++) {
            const typename L::V d = L::load(x + r * n + c) - middle;
            sum += d;
            L::store(out + r * n + c, d);
        }
        L::add(sums + c, sum);
    }
};

template <typename T>
struct Masked {
    const T *dy, *y;
    T low, high;
    int64_t n, count;
    T* out;
    double* sums;

    template <int W, int N>
    INLINE void run(int64_t c) const {
        using L = Lanes<T, W>;
        using V = typename L::V;
        const V lowest = L::splat(low), highest = L::splat(high);
        V sum = {};
        for (int64_t r = 0; r < count; r++) {
            const V value = L::load(y + r * n + c);
            const V above = value <= lowest ? V{} : L::load(dy + r * n + c);
            const V inside = value >= highest ? V{} : above;
            sum += inside;
            L::store(out + r * n + c, inside);
        }
        L::add(sums + c, sum);
    }
};

template <typename T>
struct Weighed {
    const T *x, *weights, *other;
    int64_t n, count;
    T* out;
    double* sums;

    template <int W, int N>
    INLINE void run(int64_t c) const {
        using L = Lanes<T, W>;
        const typename L::V weight = L::load(weights + c);
        typename L::V sum = {};
        for (int64_t r = 0; r < count; r++) {
            const typename L::V value = L::load(x + r * n + c);
            sum += value * L::load(other + r * n + c);
            L::store(out + r * n + c, value * weight);
        }
        L::add(sums + c, sum);
    }
};

template <typename T>
constexpr int WIDTH = VECTOR_BYTES / sizeof(T);

template <typename T>
void multiply(const T* x, int64_t k, const T* b, int64_t n, const T* shift, T low, T high, int64_t rows, T* out) {
    over_columns<WIDTH<T>, WIDEST>(Multiply<T>{x, k, b, n, shift, low, high, rows, out}, 0, n);
}

template <typename T>
void accumulate(const T* x, int64_t k, const T* b, int64_t n, T low, T high, int64_t rows, T* out) {
    over_columns<WIDTH<T>, WIDEST>(Multiply<T>{x, k, b, n, nullptr, low, high, rows, out}, 0, n);
}

template <typename T>
void outer(const T* a, int64_t k, const T* b, int64_t n, int64_t rows, double* sums) {
    over_columns<WIDTH<T>, WIDEST>(Outer<T>{a, k, b, n, rows, sums}, 0, n);
}

template <typename T>
void centred(const T* x, const T* centre, int64_t n, int64_t rows, T* out, double* sums) {
    over_columns<WIDTH<T>, 1>(Centred<T>{x, centre, n, rows, out, sums}, 0, n);
}

template <typename T>
void masked(const T* dy, const T* y, T low, T high, int64_t n, int64_t rows, T* out, double* sums) {
    over_columns<WIDTH<T>, 1>(Masked<T>{dy, y, low, high, n, rows, out, sums}, 0, n);
}

template <typename T>
void weighed(const T* x, const T* weights, const T* other, int64_t n, int64_t rows, T* out, double* sums) {
    over_columns<WIDTH<T>, 1>(Weighed<T>{x, weights, other, n, rows, out, sums}, 0, n);
}

}  // namespace

#define JOIN(a, b) a##b
#define DEFINE_PRODUCTS(T, name) const Products<T> name = {multiply<T>, accumulate<T>, outer<T>, centred<T>, masked<T>, weighed<T>};
#define DEFINE(processor)                                  \
    DEFINE_PRODUCTS(float, JOIN(float_products_, processor)) \
    DEFINE_PRODUCTS(double, JOIN(double_products_, processor))
DEFINE(PROCESSOR)
