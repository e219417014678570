/// The kernels between the matrix products: the same bits on every path, and close to the definitions.

import CKernels
import Glibc
import LinearAlgebra
import Primitives
import TestSupport
import Testing

private func random(_ count: Int, _ purpose: String, bound: Float = 1) -> [Float] {
    var generator = SeededGenerator(seed: 21, purpose: purpose)
    return (0..<count).map { _ in generator.symmetric(bound) }
}

/// Runs `body` on every path; expects the same bits, and returns them.
private func onEveryPath(_ body: (Int32) -> [Float]) -> [Float] {
    let reference = body(KernelPath.scalar.rawValue)
    for path in KernelPath.supported {
        #expect(body(path.rawValue).map(\.bitPattern) == reference.map(\.bitPattern), "\(path.name)")
    }
    return reference
}

@Suite struct KernelTests {
    @Test func `exp is within two units of the last place over its range`() {
        let x = (0..<20_001).map { -87 + Float($0) * (175 / 20_000) } + [-87.3, 88, 0, -0.0]
        let y = onEveryPath { path in
            var y = [Float](repeating: 0, count: x.count)
            tributary_exp(path, x, &y, x.count)
            return y
        }
        for (x, y) in zip(x, y) {
            let exact = exp(Double(x))
            #expect(abs(Double(y) - exact) <= 2 * Double(Float(exact).ulp), "exp(\(x))")
        }
        let far: [Float] = [-1000, -.infinity]
        let small = onEveryPath { path in
            var y: [Float] = [1, 1]
            tributary_exp(path, far, &y, 2)
            return y
        }
        #expect(small.allSatisfy { $0 >= 0 && $0 < 1.3e-38 })
    }

    @Test(arguments: [1, 7, 16, 33, 200])
    func `norms and their gradients follow the formula`(columns: Int) {
        let rows = 5
        let x = random(rows * columns, "x")
        let w = random(columns, "w")
        let dy = random(rows * columns, "dy")
        let before = random(rows * columns, "dx")
        var inverse = [Float](repeating: 0, count: rows)
        let y = onEveryPath { path in
            var y = [Float](repeating: 0, count: rows * columns)
            tributary_rms_norm(path, x, columns, w, rows, columns, 1e-5, &y, columns, &inverse)
            return y
        }
        let dx = onEveryPath { path in
            var dx = before
            tributary_rms_norm_backward(path, x, columns, w, inverse, dy, columns, rows, columns, &dx, columns, 1)
            return dx
        }
        for row in 0..<rows {
            let range = row * columns..<(row + 1) * columns
            let own = x[range].map(Double.init)
            let r = 1 / (own.reduce(0) { $0 + $1 * $1 } / Double(columns) + 1e-5).squareRoot()
            let weighted = zip(w, dy[range]).map { Double($0) * Double($1) }
            let mean = zip(weighted, own).reduce(0) { $0 + $1.0 * $1.1 } / Double(columns)
            #expect(Closeness(y[range].map(Double.init), zip(own, w).map { $0 * r * Double($1) }).isWithin(norm: 1e-6))
            let expected = (0..<columns).map {
                Double(before[row * columns + $0]) + r * weighted[$0] - own[$0] * r * r * r * mean
            }
            #expect(Closeness(dx[range].map(Double.init), expected).isWithin(norm: 1e-5))
        }
    }

    @Test(arguments: [0, 1, 7, 16, 33, 1000])
    func `the sum of squares and the weighted sum are those in double`(count: Int) {
        let x = random(count, "x", bound: 3e19)  // whose squares are beyond single precision
        let before = (0..<count).map { Double($0) * 1e15 }
        let expected = x.reduce(0.0) { $0 + Double($1) * Double($1) }
        var squares: [Double] = []
        var sums: [[Double]] = []
        for path in [.scalar] + KernelPath.supported {
            squares.append(tributary_square_sum(path.rawValue, x, count))
            var sum = before
            tributary_add_scaled(path.rawValue, &sum, x, count, 0.3)
            sums.append(sum)
        }
        #expect(squares.allSatisfy { $0.bitPattern == squares[0].bitPattern && abs($0 - expected) <= 1e-14 * expected })
        #expect(sums.allSatisfy { $0 == zip(before, x).map { $0 + 0.3 * Double($1) } })
    }

    @Test func `rotating there and back changes nothing, and a rotation keeps lengths`() {
        let (rows, heads, size) = (4, 3, 22)
        let x = random(rows * heads * size, "x")
        let angles = random(10 * size / 2, "angles", bound: 3)
        let (c, s) = (angles.map { cosf($0) }, angles.map { sinf($0) })
        let positions: [Int32] = [0, 3, 9, 4]
        let turned = onEveryPath { path in
            var y = x
            tributary_rotate(path, &y, heads * size, rows, heads, size, c, s, positions, 1)
            return y
        }
        let (first, second) = (turned[heads * size], turned[heads * size + size / 2])
        let angle = Double(angles[3 * size / 2])
        #expect(
            abs(Double(first) - (Double(x[heads * size]) * cos(angle) - Double(x[heads * size + size / 2]) * sin(angle))) < 1e-6)
        #expect(
            abs(Double(second) - (Double(x[heads * size + size / 2]) * cos(angle) + Double(x[heads * size]) * sin(angle))) < 1e-6)
        var back = turned
        tributary_rotate(KernelPath.active.rawValue, &back, heads * size, rows, heads, size, c, s, positions, -1)
        #expect(Closeness(back, x).isWithin(norm: 1e-6))
    }

    @Test(arguments: [1, 15, 16, 50])
    func `the gate and its gradient follow the formula`(count: Int) {
        let (g, u, dh) = (random(count, "g", bound: 6), random(count, "u"), random(count, "dh"))
        let h = onEveryPath { path in
            var h = [Float](repeating: 0, count: count)
            tributary_swiglu(path, g, u, count, &h)
            return h
        }
        let gradients = onEveryPath { path in
            var (dg, du) = (g, u)
            tributary_swiglu_backward(path, &dg, &du, dh, count)
            return dg + du
        }
        var (products, dg, du): ([Double], [Double], [Double]) = ([], [], [])
        for index in 0..<count {
            let (gate, up, outer) = (Double(g[index]), Double(u[index]), Double(dh[index]))
            let s = 1 / (1 + exp(-gate))
            products.append(gate * s * up)
            dg.append(outer * up * s * (1 + gate * (1 - s)))
            du.append(outer * gate * s)
        }
        #expect(Closeness(h.map(Double.init), products).isWithin(norm: 1e-6))
        #expect(Closeness(gradients.map(Double.init), dg + du).isWithin(norm: 1e-6))
    }

    @Test(arguments: [(3, 3, 1), (5, 40, 36), (16, 16, 1), (2, 33, 32)], [false, true])
    func `a causal softmax sees what it may, and its gradient too`(shape: (Int, Int, Int), givesDots: Bool) {
        let (rows, columns, visible) = shape
        let stride = (columns + 15) / 16 * 16
        let scale: Float = 0.3
        // What lies beyond the visible part must not matter.
        var scores = random(rows * stride, "scores", bound: 9)
        for row in 0..<rows { for column in 0..<stride where column >= visible + row { scores[row * stride + column] = .nan } }
        let dp = random(rows * stride, "dp")
        var normalizers = [Float](repeating: 0, count: rows)
        let p = onEveryPath { path in
            var p = scores
            tributary_causal_softmax(path, &p, stride, rows, columns, visible, scale, &normalizers)
            return p
        }
        var dots = [Float](repeating: 0, count: rows)
        for row in 0..<rows {
            let count = min(columns, visible + row)
            let own = (0..<count).map { exp(Double(scale * scores[row * stride + $0])) }
            let sum = own.reduce(0, +)
            #expect(Closeness(p[row * stride..<row * stride + count].map(Double.init), own.map { $0 / sum }).isWithin(norm: 1e-5))
            #expect(p[row * stride + count..<row * stride + columns].allSatisfy { $0 == 0 })
            #expect(abs(Double(normalizers[row]) - log(sum)) < 1e-5)
            dots[row] = (0..<count).reduce(0) { $0 + p[row * stride + $1] * dp[row * stride + $1] }
        }
        let both = onEveryPath { path in
            var (q, ds) = (scores, dp)
            tributary_causal_softmax_backward(
                path, &q, &ds, stride, rows, columns, visible, scale, normalizers, givesDots ? dots : nil)
            return q + ds
        }
        for row in 0..<rows {
            for column in 0..<columns {
                let index = row * stride + column
                #expect(abs(both[index] - p[index]) < 1e-5)
                let expected = p[index] * ((column < visible + row ? dp[index] : 0) - dots[row]) * scale
                #expect(abs(both[rows * stride + index] - expected) < 1e-5)
            }
        }
    }

    @Test(arguments: [1, 20, 5000])
    func `the cross entropy and its gradient follow the formula`(count: Int) {
        let logits = random(count, "logits", bound: 12)
        let target = count * 2 / 3
        let values = logits.map(Double.init)
        let sum = values.reduce(0) { $0 + exp($1) }
        let result = onEveryPath { path in
            var copy = logits
            let plain = tributary_cross_entropy(path, &copy, count, target, 0)
            #expect(copy == logits)
            let loss = tributary_cross_entropy(path, &copy, count, target, 0.5)
            #expect(loss == plain)
            #expect(abs(loss - (log(sum) - values[target])) < 1e-5)
            return copy
        }
        let expected = values.indices.map { 0.5 * (exp(values[$0]) / sum - ($0 == target ? 1 : 0)) }
        #expect(Closeness(result.map(Double.init), expected).largestDifference < 1e-6)
    }

    @Test func `row products are those of the definition`() {
        for columns in [1, 16, 63, 64, 130] {
            let matrix = random(6 * columns, "m")
            let x = random(columns, "x")
            let y = onEveryPath { path in
                var y = [Float](repeating: 0, count: 6)
                tributary_dot_rows(path, matrix, columns, 6, columns, x, &y)
                return y
            }
            let expected = (0..<6).map { row in
                (0..<columns).reduce(0.0) { $0 + Double(matrix[row * columns + $1]) * Double(x[$1]) }
            }
            #expect(Closeness(y.map(Double.init), expected).isWithin(norm: 1e-5))
        }
    }
}
