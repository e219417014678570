/// Matrix products over OpenBLAS: row-major, one thread a call.

import COpenBLAS

/// The BLAS library as Tributary uses it.
public enum BLAS {
    /// Runs once before the first product: OpenBLAS must not start threads of its own, since its results may depend
    /// on how many there are, and since ours already use every core.
    static let ready: Void = openblas_set_num_threads(1)

    /// The kernels that OpenBLAS chose for this processor, such as "Cooperlake"; `doctor` and benchmarks print it.
    public static var coreName: String {
        _ = ready
        return openblas_get_corename().map { String(cString: $0) } ?? "unknown"
    }
}

/// C = alpha op(A) op(B) + beta C, row-major, where op is the identity or the transpose.
///
/// op(A) is `[m, k]`, op(B) `[k, n]`, C `[m, n]`; `lda`, `ldb`, `ldc` are the floats from one stored row to the next.
/// On the calling thread.
@inlinable public func gemm(
    transposeA: Bool = false, transposeB: Bool = false, m: Int, n: Int, k: Int, alpha: Float = 1,
    _ a: UnsafePointer<Float>, lda: Int, _ b: UnsafePointer<Float>, ldb: Int, beta: Float = 0,
    _ c: UnsafeMutablePointer<Float>, ldc: Int
) {
    prepareBLAS()
    guard m > 0, n > 0 else { return }
    cblas_sgemm(
        CblasRowMajor, transposeA ? CblasTrans : CblasNoTrans, transposeB ? CblasTrans : CblasNoTrans, blasint(m),
        blasint(n), blasint(k), alpha, a, blasint(max(1, lda)), b, blasint(max(1, ldb)), beta, c, blasint(max(1, ldc)))
}

/// C = alpha op(A) op(B) + beta C in double precision; see the single-precision `gemm`.
@inlinable public func gemm(
    transposeA: Bool = false, transposeB: Bool = false, m: Int, n: Int, k: Int, alpha: Double = 1,
    _ a: UnsafePointer<Double>, lda: Int, _ b: UnsafePointer<Double>, ldb: Int, beta: Double = 0,
    _ c: UnsafeMutablePointer<Double>, ldc: Int
) {
    prepareBLAS()
    guard m > 0, n > 0 else { return }
    cblas_dgemm(
        CblasRowMajor, transposeA ? CblasTrans : CblasNoTrans, transposeB ? CblasTrans : CblasNoTrans, blasint(m),
        blasint(n), blasint(k), alpha, a, blasint(max(1, lda)), b, blasint(max(1, ldb)), beta, c, blasint(max(1, ldc)))
}

/// Rows of C that one task computes in `multiply`: enough for OpenBLAS to reach its speed, and fixed, so that the
/// result does not depend on the number of threads.
private let rowsPerTask = 256

/// The product op(A) op(B), `[m, n]` row-major, over all threads. op(A) is `[m, k]`, op(B) `[k, n]`.
public func multiply(
    _ a: [Float], _ b: [Float], m: Int, n: Int, k: Int, transposeA: Bool = false, transposeB: Bool = false
) -> [Float] {
    precondition(a.count == m * k && b.count == k * n, "\(a.count) and \(b.count) values for [\(m), \(k)] x [\(k), \(n)]")
    var c = [Float](repeating: 0, count: m * n)
    c.withUnsafeMutableBufferPointer { c in
        a.withUnsafeBufferPointer { a in
            b.withUnsafeBufferPointer { b in
                guard let a = a.baseAddress, let b = b.baseAddress, let c = c.baseAddress else { return }
                Parallel.forEach(count: (m + rowsPerTask - 1) / rowsPerTask) { task in
                    let rows = Parallel.range(task, of: m, size: rowsPerTask)
                    gemm(
                        transposeA: transposeA, transposeB: transposeB, m: rows.count, n: n, k: k,
                        a + rows.lowerBound * (transposeA ? 1 : k), lda: transposeA ? m : k, b, ldb: transposeB ? k : n,
                        c + rows.lowerBound * n, ldc: n)
                }
            }
        }
    }
    return c
}

/// The product op(A) op(B) in double precision; see the single-precision `multiply`.
public func multiply(
    _ a: [Double], _ b: [Double], m: Int, n: Int, k: Int, transposeA: Bool = false, transposeB: Bool = false
) -> [Double] {
    precondition(a.count == m * k && b.count == k * n, "\(a.count) and \(b.count) values for [\(m), \(k)] x [\(k), \(n)]")
    var c = [Double](repeating: 0, count: m * n)
    c.withUnsafeMutableBufferPointer { c in
        a.withUnsafeBufferPointer { a in
            b.withUnsafeBufferPointer { b in
                guard let a = a.baseAddress, let b = b.baseAddress, let c = c.baseAddress else { return }
                Parallel.forEach(count: (m + rowsPerTask - 1) / rowsPerTask) { task in
                    let rows = Parallel.range(task, of: m, size: rowsPerTask)
                    gemm(
                        transposeA: transposeA, transposeB: transposeB, m: rows.count, n: n, k: k,
                        a + rows.lowerBound * (transposeA ? 1 : k), lda: transposeA ? m : k, b, ldb: transposeB ? k : n,
                        c + rows.lowerBound * n, ldc: n)
                }
            }
        }
    }
    return c
}

@usableFromInline func prepareBLAS() { _ = BLAS.ready }
