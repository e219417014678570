/// The discrete Fourier transform of a power of two of complex numbers, in double precision (Cooley and Tukey 1965).

import Glibc

/// Frequencies stand in bit-reversed order, which sums of independent losses do not mind: they multiply frequency by
/// frequency, and `inverse` takes that order back to the natural one.
struct FourierTransform {
    let count: Int
    /// exp(-2 pi i k / count) for k below count / 2.
    private let cosines: [Double]
    private let sines: [Double]

    /// - Parameter count: a power of two, at least 2
    init(count: Int) {
        precondition(count >= 2 && count & (count - 1) == 0, "\(count) is no power of two")
        self.count = count
        let angles = (0..<count / 2).map { 2 * Double.pi * Double($0) / Double(count) }
        cosines = angles.map { cos($0) }
        sines = angles.map { -sin($0) }
    }

    /// Both arrays have `count` values and are replaced by the transform, in bit-reversed order.
    func forward(_ real: inout [Double], _ imaginary: inout [Double]) {
        withPointers(&real, &imaginary) { x, y, c, s in
            var half = count / 2
            while half >= 1 {
                let step = count / (2 * half)
                for start in stride(from: 0, to: count, by: 2 * half) {
                    for k in 0..<half {
                        let (i, j) = (start + k, start + k + half)
                        let (u, v) = (x[i] - x[j], y[i] - y[j])
                        x[i] += x[j]
                        y[i] += y[j]
                        let (cosine, sine) = (c[k * step], s[k * step])
                        x[j] = u * cosine - v * sine
                        y[j] = u * sine + v * cosine
                    }
                }
                half /= 2
            }
        }
    }

    /// The inverse of `forward`, from bit-reversed order.
    func inverse(_ real: inout [Double], _ imaginary: inout [Double]) {
        withPointers(&real, &imaginary) { x, y, c, s in
            var half = 1
            while half < count {
                let step = count / (2 * half)
                for start in stride(from: 0, to: count, by: 2 * half) {
                    for k in 0..<half {
                        let (i, j) = (start + k, start + k + half)
                        let (cosine, sine) = (c[k * step], -s[k * step])
                        let (u, v) = (x[j] * cosine - y[j] * sine, x[j] * sine + y[j] * cosine)
                        x[j] = x[i] - u
                        y[j] = y[i] - v
                        x[i] += u
                        y[i] += v
                    }
                }
                half *= 2
            }
            for i in 0..<count {
                x[i] /= Double(count)
                y[i] /= Double(count)
            }
        }
    }

    /// Calls `body` with every index of the bit-reversed order, and that of the frequency which is its complex conjugate
    /// in the transform of real values; of such a pair only once.
    func forEachFrequency(_ body: (_ index: Int, _ conjugate: Int) -> Void) {
        body(0, 0)
        // Frequencies k and count - k have the same lowest bit set, and all bits above it flipped: reversed, they lie
        // mirrored within the indices of one highest bit.
        var start = 1
        while start < count {
            for offset in 0..<(start + 1) / 2 { body(start + offset, 2 * start - 1 - offset) }
            start *= 2
        }
    }

    private typealias Pointer = UnsafeMutablePointer<Double>

    private func withPointers(
        _ real: inout [Double], _ imaginary: inout [Double],
        _ body: (Pointer, Pointer, UnsafePointer<Double>, UnsafePointer<Double>) -> Void
    ) {
        precondition(real.count == count && imaginary.count == count, "the transform is of \(count) values")
        real.withUnsafeMutableBufferPointer { x in
            imaginary.withUnsafeMutableBufferPointer { y in
                cosines.withUnsafeBufferPointer { c in
                    sines.withUnsafeBufferPointer { s in body(x.baseAddress!, y.baseAddress!, c.baseAddress!, s.baseAddress!) }
                }
            }
        }
    }
}
