/// Products, factorizations and the sharing out of work, against plain loops and definitions.

import LinearAlgebra
import Primitives
import TestSupport
import Testing

private func random(_ count: Int, _ purpose: String) -> [Float] {
    var generator = SeededGenerator(seed: 7, purpose: purpose)
    return (0..<count).map { _ in generator.symmetric(1) }
}

private func naive(_ a: [Double], _ b: [Double], _ m: Int, _ n: Int, _ k: Int, _ ta: Bool, _ tb: Bool) -> [Double] {
    var c = [Double](repeating: 0, count: m * n)
    for i in 0..<m {
        for j in 0..<n {
            for l in 0..<k { c[i * n + j] += (ta ? a[l * m + i] : a[i * k + l]) * (tb ? b[j * k + l] : b[l * n + j]) }
        }
    }
    return c
}

@Suite struct Products {
    @Test(arguments: [(1, 1, 1), (3, 5, 7), (270, 33, 19), (17, 300, 64)])
    func `a product equals the triple loop whatever is transposed`(shape: (Int, Int, Int)) {
        let (m, n, k) = shape
        let a = random(m * k, "a")
        let b = random(k * n, "b")
        for ta in [false, true] {
            for tb in [false, true] {
                let reference = naive(a.map(Double.init), b.map(Double.init), m, n, k, ta, tb)
                let single = multiply(a, b, m: m, n: n, k: k, transposeA: ta, transposeB: tb)
                #expect(Closeness(single.map(Double.init), reference).isWithin(norm: 1e-6))
                let double = multiply(
                    a.map(Double.init), b.map(Double.init), m: m, n: n, k: k, transposeA: ta, transposeB: tb)
                #expect(Closeness(double, reference).isWithin(norm: 1e-14))
            }
        }
    }

    @Test func `a product has the same bits on one thread and on several`() {
        let a = random(1000 * 90, "a")
        let b = random(90 * 70, "b")
        let one = Parallel.limited(toThreads: 1) { multiply(a, b, m: 1000, n: 70, k: 90) }
        let all = multiply(a, b, m: 1000, n: 70, k: 90)
        #expect(one.map(\.bitPattern) == all.map(\.bitPattern))
    }

    @Test func `the BLAS library says which kernels it uses`() {
        #expect(!BLAS.coreName.isEmpty)
    }
}

@Suite struct Sharing {
    @Test func `every task runs once, also from inside a task`() {
        for round in 0..<200 {
            let count = 1 + round % 37
            var hits = [Int](repeating: 0, count: count * 3)
            hits.withUnsafeMutableBufferPointer { hits in
                nonisolated(unsafe) let hits = hits
                Parallel.forEach(count: count) { outer in
                    Parallel.forEach(count: 3) { inner in hits[outer * 3 + inner] += 1 }
                }
            }
            #expect(hits.allSatisfy { $0 == 1 })
        }
    }

    @Test func `callers on several threads at once all finish`() async {
        await withTaskGroup(of: Int.self) { group in
            for _ in 0..<8 {
                group.addTask {
                    var sums = [Int](repeating: 0, count: 100)
                    for _ in 0..<50 {
                        sums.withUnsafeMutableBufferPointer { sums in
                            nonisolated(unsafe) let sums = sums
                            Parallel.forEach(count: 100) { sums[$0] += $0 }
                        }
                    }
                    return sums.reduce(0, +)
                }
            }
            for await sum in group { #expect(sum == 50 * 4950) }
        }
    }

    @Test func `buffers are aligned and grow`() {
        let buffer = FloatBuffer(capacity: 3)
        #expect(UInt(bitPattern: buffer.pointer) % 64 == 0)
        let grown = buffer.reserve(100_001)
        grown[100_000] = 1
        #expect(buffer.capacity >= 100_001 && UInt(bitPattern: grown) % 64 == 0)
        #expect(UInt(bitPattern: Scratch.first.floats(77)) % 64 == 0)
    }
}

@Suite struct Factorizations {
    @Test(arguments: [(5, 5), (9, 4), (4, 9), (1, 6), (70, 33)])
    func `the singular value decomposition is orthonormal, falling and exact`(shape: (Int, Int)) throws {
        let (rows, columns) = shape
        let k = min(rows, columns)
        let a = random(rows * columns, "svd").map(Double.init)
        let (u, s, vt) = try svd(a, rows: rows, columns: columns)
        #expect(zip(s, s.dropFirst()).allSatisfy { $0 >= $1 } && s.allSatisfy { $0 >= 0 })
        var scaled = u
        for row in 0..<rows { for column in 0..<k { scaled[row * k + column] *= s[column] } }
        #expect(Closeness(multiply(scaled, vt, m: rows, n: columns, k: k), a).isWithin(norm: 1e-13))
        let identity = (0..<k * k).map { $0 / k == $0 % k ? 1.0 : 0 }
        #expect(Closeness(multiply(u, u, m: k, n: k, k: rows, transposeA: true), identity).isWithin(norm: 1e-13))
        #expect(Closeness(multiply(vt, vt, m: k, n: k, k: columns, transposeB: true), identity).isWithin(norm: 1e-13))
        let single = try svd(a.map(Float.init), rows: rows, columns: columns)
        #expect(Closeness(single.s.map(Double.init), s).isWithin(norm: 1e-5))
    }

    @Test(arguments: [(6, 6), (20, 3), (65, 31)])
    func `QR gives orthonormal columns and an upper triangle`(shape: (Int, Int)) throws {
        let (rows, columns) = shape
        let a = random(rows * columns, "qr").map(Double.init)
        let (q, r) = try qr(a, rows: rows, columns: columns)
        #expect(Closeness(multiply(q, r, m: rows, n: columns, k: columns), a).isWithin(norm: 1e-13))
        for row in 0..<columns { for column in 0..<row { #expect(r[row * columns + column] == 0) } }
        let identity = (0..<columns * columns).map { $0 / columns == $0 % columns ? 1.0 : 0 }
        #expect(Closeness(multiply(q, q, m: columns, n: columns, k: rows, transposeA: true), identity).isWithin(norm: 1e-13))
        let single = try qr(a.map(Float.init), rows: rows, columns: columns)
        #expect(Closeness(multiply(single.q, single.r, m: rows, n: columns, k: columns).map(Double.init), a).isWithin(norm: 1e-5))
    }

    @Test func `the randomised decomposition finds a matrix of low rank and states its error`() throws {
        let (rows, columns, rank) = (120, 75, 6)
        let product = multiply(random(rows * rank, "left"), random(rank * columns, "right"), m: rows, n: columns, k: rank)
        let noisy = zip(product, random(rows * columns, "noise")).map { $0 + 0.001 * $1 }
        var generator = SeededGenerator(seed: 1, purpose: "probe")
        let result = try randomizedSVD(noisy, rows: rows, columns: columns, rank: rank, generator: &generator)
        let exact = try svd(noisy, rows: rows, columns: columns)
        #expect(Closeness(result.s, exact.s[..<rank]).isWithin(norm: 1e-4))
        var scaled = result.u
        for row in 0..<rows { for column in 0..<rank { scaled[row * rank + column] *= result.s[column] } }
        let error = Closeness(multiply(scaled, result.vt, m: rows, n: columns, k: rank), noisy)
        #expect(abs(error.relativeNorm - result.relativeError) < 1e-4)
        #expect(result.relativeError < 0.002)
    }

    @Test func `values that are not finite are refused with their place`() {
        var a = random(12, "nan")
        a[7] = .nan
        let failure = #expect(throws: Failure.self) { try svd(a, rows: 3, columns: 4) }
        #expect(failure?.message.contains("row 1, column 3") == true)
    }
}
