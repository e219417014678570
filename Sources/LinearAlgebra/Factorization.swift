/// Factorizations over LAPACK: QR and the singular value decomposition, exact and randomised; row-major throughout.

import COpenBLAS
import Primitives

/// A real type that LAPACK factorizes: `Float` and `Double`.
public protocol FactorizationScalar: BinaryFloatingPoint, Sendable {
    /// `?gesdd` with `jobz` "S" on a column-major `[m, n]`; `work` nil asks for the size, in the result.
    static func gesdd(
        m: Int32, n: Int32, a: UnsafeMutablePointer<Self>, s: UnsafeMutablePointer<Self>, u: UnsafeMutablePointer<Self>,
        vt: UnsafeMutablePointer<Self>, work: UnsafeMutablePointer<Self>, workCount: Int32, integers: UnsafeMutablePointer<Int32>
    ) -> Int32
    static func geqrf(
        m: Int32, n: Int32, a: UnsafeMutablePointer<Self>, tau: UnsafeMutablePointer<Self>, work: UnsafeMutablePointer<Self>,
        workCount: Int32
    ) -> Int32
    static func orgqr(
        m: Int32, n: Int32, a: UnsafeMutablePointer<Self>, tau: UnsafeMutablePointer<Self>, work: UnsafeMutablePointer<Self>,
        workCount: Int32
    ) -> Int32
}

extension Float: FactorizationScalar {
    public static func gesdd(
        m: Int32, n: Int32, a: UnsafeMutablePointer<Float>, s: UnsafeMutablePointer<Float>, u: UnsafeMutablePointer<Float>,
        vt: UnsafeMutablePointer<Float>, work: UnsafeMutablePointer<Float>, workCount: Int32,
        integers: UnsafeMutablePointer<Int32>
    ) -> Int32 {
        var (m, n, k, workCount, information) = (m, n, min(m, n), workCount, Int32(0))
        var job = CChar(UInt8(ascii: "S"))
        sgesdd_(&job, &m, &n, a, &m, s, u, &m, vt, &k, work, &workCount, integers, &information)
        return information
    }
    public static func geqrf(
        m: Int32, n: Int32, a: UnsafeMutablePointer<Float>, tau: UnsafeMutablePointer<Float>, work: UnsafeMutablePointer<Float>,
        workCount: Int32
    ) -> Int32 {
        var (m, n, workCount, information) = (m, n, workCount, Int32(0))
        sgeqrf_(&m, &n, a, &m, tau, work, &workCount, &information)
        return information
    }
    public static func orgqr(
        m: Int32, n: Int32, a: UnsafeMutablePointer<Float>, tau: UnsafeMutablePointer<Float>, work: UnsafeMutablePointer<Float>,
        workCount: Int32
    ) -> Int32 {
        var (m, n, workCount, information) = (m, n, workCount, Int32(0))
        sorgqr_(&m, &n, &n, a, &m, tau, work, &workCount, &information)
        return information
    }
}

extension Double: FactorizationScalar {
    public static func gesdd(
        m: Int32, n: Int32, a: UnsafeMutablePointer<Double>, s: UnsafeMutablePointer<Double>, u: UnsafeMutablePointer<Double>,
        vt: UnsafeMutablePointer<Double>, work: UnsafeMutablePointer<Double>, workCount: Int32,
        integers: UnsafeMutablePointer<Int32>
    ) -> Int32 {
        var (m, n, k, workCount, information) = (m, n, min(m, n), workCount, Int32(0))
        var job = CChar(UInt8(ascii: "S"))
        dgesdd_(&job, &m, &n, a, &m, s, u, &m, vt, &k, work, &workCount, integers, &information)
        return information
    }
    public static func geqrf(
        m: Int32, n: Int32, a: UnsafeMutablePointer<Double>, tau: UnsafeMutablePointer<Double>,
        work: UnsafeMutablePointer<Double>,
        workCount: Int32
    ) -> Int32 {
        var (m, n, workCount, information) = (m, n, workCount, Int32(0))
        dgeqrf_(&m, &n, a, &m, tau, work, &workCount, &information)
        return information
    }
    public static func orgqr(
        m: Int32, n: Int32, a: UnsafeMutablePointer<Double>, tau: UnsafeMutablePointer<Double>,
        work: UnsafeMutablePointer<Double>,
        workCount: Int32
    ) -> Int32 {
        var (m, n, workCount, information) = (m, n, workCount, Int32(0))
        dorgqr_(&m, &n, &n, a, &m, tau, work, &workCount, &information)
        return information
    }
}

/// A = U diag(s) V^T with k = min(rows, columns): `u` `[rows, k]`, `s` falling, `vt` `[k, columns]`, row-major.
///
/// Signs are LAPACK's and may differ between processors.
/// - Throws: `Failure` if a value is not finite or the iteration does not converge.
public func svd<Scalar: FactorizationScalar>(
    _ a: [Scalar], rows: Int, columns: Int
) throws(Failure) -> (u: [Scalar], s: [Scalar], vt: [Scalar]) {
    try checkFactorizable(a, rows: rows, columns: columns, purpose: "singular value decomposition")
    let k = min(rows, columns)
    guard k > 0 else { return ([], [], []) }
    _ = BLAS.ready
    // A row-major [rows, columns] is A^T column-major [columns, rows]; of A^T = U' S V'^T the column-major U' is
    // V^T row-major, and V'^T is U row-major: no transposition is needed.
    var copy = a
    var s = [Scalar](repeating: 0, count: k)
    var vt = [Scalar](repeating: 0, count: k * columns)
    var u = [Scalar](repeating: 0, count: rows * k)
    var integers = [Int32](repeating: 0, count: 8 * k)
    let m = Int32(columns)
    let n = Int32(rows)
    var size: Scalar = 0
    var status = Scalar.gesdd(m: m, n: n, a: &copy, s: &s, u: &vt, vt: &u, work: &size, workCount: -1, integers: &integers)
    if status == 0 {
        // A size beyond 2^24 comes back rounded in single precision: one part in 2^20 more is never too little.
        let count = Int(size) + Int(size) / (1 << 20) + 1
        var work = [Scalar](repeating: 0, count: count)
        status = Scalar.gesdd(
            m: m, n: n, a: &copy, s: &s, u: &vt, vt: &u, work: &work, workCount: Int32(count), integers: &integers)
    }
    guard status == 0 else {
        throw Failure(
            .internalError,
            "the singular value decomposition of a \(rows) x \(columns) matrix did not converge (LAPACK status \(status)); report this with the matrix's origin"
        )
    }
    return (u, s, vt)
}

/// A = Q R for rows >= columns: `q` `[rows, columns]` with orthonormal columns, `r` `[columns, columns]` upper
/// triangular, row-major.
public func qr<Scalar: FactorizationScalar>(
    _ a: [Scalar], rows: Int, columns: Int
) throws(Failure) -> (q: [Scalar], r: [Scalar]) {
    precondition(rows >= columns, "QR of a \(rows) x \(columns) matrix: fewer rows than columns")
    try checkFactorizable(a, rows: rows, columns: columns, purpose: "QR factorization")
    guard columns > 0 else { return ([], []) }
    _ = BLAS.ready
    var factored = [Scalar](repeating: 0, count: rows * columns)
    for row in 0..<rows {
        for column in 0..<columns { factored[column * rows + row] = a[row * columns + column] }
    }
    let m = Int32(rows)
    let n = Int32(columns)
    var tau = [Scalar](repeating: 0, count: columns)
    let count = max(64, 64 * columns)
    var work = [Scalar](repeating: 0, count: count)
    var status = Scalar.geqrf(m: m, n: n, a: &factored, tau: &tau, work: &work, workCount: Int32(count))
    var r = [Scalar](repeating: 0, count: columns * columns)
    for row in 0..<columns {
        for column in row..<columns { r[row * columns + column] = factored[column * rows + row] }
    }
    if status == 0 { status = Scalar.orgqr(m: m, n: n, a: &factored, tau: &tau, work: &work, workCount: Int32(count)) }
    guard status == 0 else {
        throw Failure(.internalError, "the QR factorization of a \(rows) x \(columns) matrix failed (LAPACK status \(status))")
    }
    var q = [Scalar](repeating: 0, count: rows * columns)
    for row in 0..<rows {
        for column in 0..<columns { q[row * columns + column] = factored[column * rows + row] }
    }
    return (q, r)
}

/// The leading `rank` singular triples of A by a random range finder with power iterations
/// (Halko, Martinsson, Tropp 2011, arXiv:0909.4061, algorithms 4.4 and 5.1).
///
/// - Parameters:
///   - rank: at most min(rows, columns)
///   - oversampling: further random directions; 10 by default
///   - powerIterations: passes that sharpen the decay of the spectrum; 2 by default
/// - Returns: `u` `[rows, rank]`, `s` falling, `vt` `[rank, columns]`, and the Frobenius norm of A - U diag(s) V^T
///   over that of A.
public func randomizedSVD(
    _ a: [Float], rows: Int, columns: Int, rank: Int, oversampling: Int = 10, powerIterations: Int = 2,
    generator: inout SeededGenerator
) throws(Failure) -> (u: [Float], s: [Float], vt: [Float], relativeError: Double) {
    precondition(rank >= 1 && rank <= min(rows, columns), "rank \(rank) of a \(rows) x \(columns) matrix")
    try checkFactorizable(a, rows: rows, columns: columns, purpose: "singular value decomposition")
    let width = min(rank + oversampling, rows, columns)
    let probe = (0..<columns * width).map { _ in generator.symmetric(1) }
    var basis = try qr(multiply(a, probe, m: rows, n: width, k: columns), rows: rows, columns: width).q
    for _ in 0..<powerIterations {
        let back = try qr(multiply(a, basis, m: columns, n: width, k: rows, transposeA: true), rows: columns, columns: width).q
        basis = try qr(multiply(a, back, m: rows, n: width, k: columns), rows: rows, columns: width).q
    }
    // B = Q^T A is [width, columns].
    let projected = multiply(basis, a, m: width, n: columns, k: rows, transposeA: true)
    let small = try svd(projected, rows: width, columns: columns)
    let k = min(width, columns)
    let left = multiply(basis, small.u, m: rows, n: k, k: width)
    var u = [Float](repeating: 0, count: rows * rank)
    for row in 0..<rows {
        for column in 0..<rank { u[row * rank + column] = left[row * k + column] }
    }
    let s = Array(small.s[..<rank])
    let whole = a.reduce(0.0) { $0 + Double($1) * Double($1) }
    let kept = s.reduce(0.0) { $0 + Double($1) * Double($1) }
    let error = whole > 0 ? (max(0, whole - kept) / whole).squareRoot() : 0
    return (u, s, Array(small.vt[..<(rank * columns)]), error)
}

private func checkFactorizable<Scalar: FactorizationScalar>(
    _ a: [Scalar], rows: Int, columns: Int, purpose: String
) throws(Failure) {
    precondition(a.count == rows * columns, "\(a.count) values for a \(rows) x \(columns) matrix")
    // LAPACK loops for ever, or returns rubbish, on values that are not finite.
    guard let position = a.firstIndex(where: { !$0.isFinite }) else { return }
    throw Failure(
        .badData,
        "the \(purpose) of a \(rows) x \(columns) matrix is impossible: the value in row \(position / max(1, columns)), column \(position % max(1, columns)) is \(a[position]); the weights or gradients overflowed"
    )
}
