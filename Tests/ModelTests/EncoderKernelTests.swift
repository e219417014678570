/// LayerNorm and GELU: the same bits on every path, and close to the definitions.

import CKernels
import Glibc
import LinearAlgebra
import Primitives
import TestSupport
import Testing

private func random(_ count: Int, _ purpose: String, bound: Float = 1) -> [Float] {
    var generator = SeededGenerator(seed: 22, purpose: purpose)
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

/// Rows of bfloat16 `[rows, stride]` as floats, without what stands behind the columns; an odd end holds a zero.
private func widened(_ halves: [UInt16], rows: Int, columns: Int, stride: Int) -> [Float] {
    (0..<rows).flatMap { row in
        #expect(columns % 2 == 0 || halves[row * stride + columns] == 0)
        return (0..<columns).map { Float(bitPattern: UInt32(halves[row * stride + $0]) << 16) }
    }
}

/// The nearest bfloat16 of a normal number.
private func rounded(_ value: Float) -> Float {
    Float(bitPattern: (value.bitPattern + 0x7fff + (value.bitPattern >> 16 & 1)) & 0xffff_0000)
}

@Suite struct EncoderKernelTests {
    @Test(arguments: [(3, 1), (5, 21), (2, 16), (4, 48), (1, 387)])
    func `layer norm and its gradient are their definitions`(rows: Int, columns: Int) {
        let epsilon: Float = 1e-5
        let (x, w, b) = (random(rows * columns, "x", bound: 3), random(columns, "w"), random(columns, "b"))
        let (dy, added) = (random(rows * columns, "dy"), random(rows * columns, "added"))
        let stride = columns + 3
        let all = onEveryPath { path in
            var y = [Float](repeating: 0, count: rows * columns)
            var statistics = [Float](repeating: 0, count: 2 * rows)
            var halves = [UInt16](repeating: 7, count: rows * stride)
            tributary_layer_norm(path, x, w, b, rows, columns, epsilon, &y, &halves, stride, &statistics)
            #expect(widened(halves, rows: rows, columns: columns, stride: stride) == y.map(rounded))
            // In place, and without the rest.
            var same = x
            same.withUnsafeMutableBufferPointer {
                tributary_layer_norm(path, $0.baseAddress!, w, b, rows, columns, epsilon, $0.baseAddress!, nil, 0, nil)
            }
            #expect(same == y)
            var dx = [Float](repeating: 0, count: rows * columns)
            tributary_layer_norm_backward(path, x, w, statistics, dy, nil, rows, columns, &dx)
            var both = dy
            both.withUnsafeMutableBufferPointer {
                tributary_layer_norm_backward(path, x, w, statistics, $0.baseAddress!, added, rows, columns, $0.baseAddress!)
            }
            return y + statistics + dx + both
        }
        var expected: [[Double]] = [[], [], [], []]
        for row in 0..<rows {
            let v = x[row * columns..<(row + 1) * columns].map(Double.init)
            let mean = v.reduce(0, +) / Double(columns)
            let inverse = 1 / (v.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(columns) + Double(epsilon)).squareRoot()
            let normed = v.map { ($0 - mean) * inverse }
            expected[0] += normed.indices.map { normed[$0] * Double(w[$0]) + Double(b[$0]) }
            expected[1] += [mean, inverse]
            for (index, second) in [0.0, 1.0].enumerated() {
                let g = normed.indices.map {
                    (Double(dy[row * columns + $0]) + second * Double(added[row * columns + $0])) * Double(w[$0])
                }
                let center = g.reduce(0, +) / Double(columns)
                let product = zip(g, normed).reduce(0) { $0 + $1.0 * $1.1 } / Double(columns)
                expected[2 + index] += g.indices.map { inverse * (g[$0] - center - normed[$0] * product) }
            }
        }
        var start = 0
        for part in expected {
            let own = all[start..<start + part.count].map(Double.init)
            // One column has no gradient but rounding.
            if columns > 1 || part.count == 2 * rows { #expect(Closeness(own, part).isWithin(ofLargest: 3e-6)) }
            start += part.count
        }
    }

    @Test func `gelu and its gradient are those of the normal distribution`() {
        let x: [Float] = (0..<40_003).map { -14 + Float($0) * (28 / 40_000) } + [0, -0.0, 1e-20, -1e-20, 50, -50, 1e5, -1e5]
        let y = onEveryPath { path in
            var y = [Float](repeating: 0, count: x.count)
            tributary_gelu(path, x, x.count, &y)
            return y
        }
        let dx = onEveryPath { path in
            var dx = [Float](repeating: 2, count: x.count)
            tributary_gelu_backward(path, x, &dx, x.count)
            return dx
        }
        for ((x, y), dx) in zip(zip(x, y), dx) {
            let exact = Double(x)
            let distribution = erfc(-exact / 2.0.squareRoot()) / 2
            let slope = distribution + exact * exp(-exact * exact / 2) / (2 * Double.pi).squareRoot()
            #expect(abs(Double(y) - exact * distribution) <= 2e-7 * max(abs(exact), 1e-3), "gelu(\(x))")
            #expect(abs(Double(dx) - 2 * slope) <= 6e-7, "gelu'(\(x))")
            // Small results keep their digits.
            if x < -0.1, x > -6 { #expect(abs(Double(y) / (exact * distribution) - 1) <= 3e-6, "gelu(\(x))") }
        }
        let (rows, columns, stride) = (40, 21, 26)
        for path in KernelPath.supported {
            var halves = [UInt16](repeating: 7, count: rows * stride)
            tributary_gelu_bf16(path.rawValue, Array(x[20_000...]), rows, columns, &halves, stride)
            #expect(
                widened(halves, rows: rows, columns: columns, stride: stride) == y[20_000..<20_000 + rows * columns].map(rounded))
        }
    }
}
