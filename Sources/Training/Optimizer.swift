/// AdamW, in float32 or with moments in 8 bits, and SGD over flat floats, step by step as torch computes them.

import CKernels
import Glibc
import LinearAlgebra
import Plan
import Quantization

/// Changes an adapter's values along a gradient. Its state starts anew with each object: each federated round.
///
/// `adamw8bit` keeps the two moments of a large tensor as `BlockCodes` between steps: 2 bytes a value and 2 scales a block,
/// in place of 8 bytes. Blocks begin anew with each tensor.
public struct Optimizer: Sendable {
    public let name: OptimizerName
    public let weightDecay: Double
    /// Steps taken.
    public private(set) var steps = 0
    /// Running means of the gradient and of its square; empty for SGD.
    private var first: Moments
    private var second: Moments
    /// What one task works on.
    private let parts: [Part]
    private let path: KernelPath

    // Kingma and Ba 2015 (arXiv:1412.6980), algorithm 1; decoupled decay after Loshchilov and Hutter 2019 (arXiv:1711.05101).
    public static let firstDecay = 0.9
    public static let secondDecay = 0.999
    public static let epsilon = 1e-8
    /// `adamw8bit` keeps the moments of smaller tensors in float32, as bitsandbytes does (`min_8bit_size`).
    public static let smallestCoded = 4096

    /// Values of a part at most: a multiple of every vector length and of a block, so that parts never share a cache line.
    private static let partSize = 1 << 16

    private struct Part: Sendable {
        /// In the flat values and gradients.
        let range: Range<Int>
        /// Where its moments begin, in the codes or in the floats.
        let state: Int
        let isCoded: Bool
    }

    /// One of the two moments of all values.
    private struct Moments: Sendable {
        var floats: [Float]
        var codes: BlockCodes

        var byteCount: Int { 4 * floats.count + codes.byteCount }

        mutating func withPointers(_ body: (UnsafeMutablePointer<Float>?, tributary_codes) -> Void) {
            floats.withUnsafeMutableBufferPointer { floats in codes.withUnsafeCodes { body(floats.baseAddress, $0) } }
        }
    }

    /// - Parameter tensorCounts: how many values each tensor has, in the order of the flat values
    public init(_ name: OptimizerName, tensorCounts: [Int], weightDecay: Double = 0, path: KernelPath = .active) {
        self.name = name
        self.weightDecay = weightDecay
        self.path = path
        // Neighbours with moments in float32 are one run.
        var runs: [(count: Int, isCoded: Bool)] = []
        for count in tensorCounts {
            let isCoded = name == .adamw8bit && count >= Self.smallestCoded
            if !isCoded, let last = runs.last, !last.isCoded {
                runs[runs.count - 1].count += count
            } else {
                runs.append((count, isCoded))
            }
        }
        var parts: [Part] = []
        var (start, floats, coded) = (0, 0, 0)
        for (count, isCoded) in runs {
            for offset in stride(from: 0, to: count, by: Self.partSize) {
                parts.append(
                    Part(
                        range: start + offset..<start + min(count, offset + Self.partSize),
                        state: (isCoded ? coded : floats) + offset, isCoded: isCoded))
            }
            start += count
            if isCoded {
                coded += (count + BlockCodes.blockSize - 1) / BlockCodes.blockSize * BlockCodes.blockSize
            } else {
                floats += count
            }
        }
        self.parts = parts
        if name == .sgd { floats = 0 }
        first = Moments(floats: [Float](repeating: 0, count: floats), codes: BlockCodes(zeros: coded, map: .signed))
        second = Moments(floats: [Float](repeating: 0, count: floats), codes: BlockCodes(zeros: coded, map: .unsigned))
    }

    /// Bytes that the moments of tensors of these sizes will take.
    public static func stateByteCount(_ name: OptimizerName, tensorCounts: [Int]) -> Int {
        guard name != .sgd else { return 0 }
        return tensorCounts.reduce(0) { sum, count in
            let blocks = (count + BlockCodes.blockSize - 1) / BlockCodes.blockSize
            return sum + (name == .adamw8bit && count >= smallestCoded ? 2 * blocks * (BlockCodes.blockSize + 4) : 8 * count)
        }
    }

    /// Bytes of the moments.
    public var stateByteCount: Int { first.byteCount + second.byteCount }

    /// One step: `values` and `gradient` have as many values as the tensors given at the start.
    public mutating func step(_ values: inout [Float], gradient: [Float], learningRate: Double) {
        values.withUnsafeMutableBufferPointer { step($0, gradient: gradient, learningRate: learningRate) }
    }

    mutating func step(_ values: UnsafeMutableBufferPointer<Float>, gradient: [Float], learningRate: Double) {
        let count = parts.last?.range.upperBound ?? 0
        precondition(
            values.count == count && gradient.count == count,
            "\(values.count) values and \(gradient.count) gradients for tensors of \(count)")
        steps += 1
        gradient.withUnsafeBufferPointer { gradient in
            guard let w = values.baseAddress, let g = gradient.baseAddress else { return }
            switch name {
            case .adamw, .adamw8bit: adamW(w, g, learningRate)
            case .sgd: sgd(w, g, learningRate)
            }
        }
    }

    /// The order of operations is torch's (`_single_tensor_adam`), so that losses can be compared over many steps:
    ///
    ///     w = w (1 - eta lambda);  m = m + (g - m)(1 - b1);  v = v b2 + g g (1 - b2)
    ///     w = w - eta / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + epsilon)
    ///
    /// Moments in codes are decoded before and encoded after it: w changes by moments that are not rounded.
    private mutating func adamW(_ w: UnsafeMutablePointer<Float>, _ g: UnsafePointer<Float>, _ learningRate: Double) {
        let step = tributary_adamw_step(
            keep: Float(1 - learningRate * weightDecay), first_share: Float(1 - Self.firstDecay),
            second_keep: Float(Self.secondDecay), second_share: Float(1 - Self.secondDecay),
            size: Float(learningRate / (1 - pow(Self.firstDecay, Double(steps)))),
            correction: Float((1 - pow(Self.secondDecay, Double(steps))).squareRoot()), epsilon: Float(Self.epsilon))
        let (parts, path) = (parts, path.rawValue)
        first.withPointers { firstFloats, firstCodes in
            second.withPointers { secondFloats, secondCodes in
                Parallel.forEach(count: parts.count) { index in
                    let part = parts[index]
                    let (w, g, count) = (w + part.range.lowerBound, g + part.range.lowerBound, part.range.count)
                    withUnsafePointer(to: step) { step in
                        if part.isCoded {
                            var (m, v) = (firstCodes.advanced(by: part.state), secondCodes.advanced(by: part.state))
                            tributary_adamw_codes(path, step, w, g, &m, &v, count)
                        } else {
                            tributary_adamw(path, step, w, g, firstFloats! + part.state, secondFloats! + part.state, count)
                        }
                    }
                }
            }
        }
    }

    /// w = w - eta (g + lambda w): plain gradient descent, as torch's SGD without momentum.
    private func sgd(_ w: UnsafeMutablePointer<Float>, _ g: UnsafePointer<Float>, _ learningRate: Double) {
        let (rate, decay) = (Float(learningRate), Float(weightDecay))
        Parallel.forEach(count: parts.count) { index in
            for index in parts[index].range { w[index] -= rate * (g[index] + decay * w[index]) }
        }
    }
}

extension tributary_codes {
    /// Those from a block's first value on.
    fileprivate func advanced(by count: Int) -> tributary_codes {
        tributary_codes(map: map, codes: codes + count, scales: scales + count / BlockCodes.blockSize)
    }
}

/// The Euclidean norm, summed in double, part by part in a fixed order.
public func norm(_ values: [Float]) -> Double {
    let (count, path) = (values.count, KernelPath.active.rawValue)
    var sums = [Double](repeating: 0, count: (count + gradientPart - 1) / gradientPart)
    values.withUnsafeBufferPointer { values in
        sums.withUnsafeMutableBufferPointer { sums in
            nonisolated(unsafe) let (values, sums) = (values, sums)
            Parallel.forEach(count: sums.count) { task in
                let range = Parallel.range(task, of: count, size: gradientPart)
                sums[task] = tributary_square_sum(path, values.baseAddress! + range.lowerBound, range.count)
            }
        }
    }
    return sums.reduce(0, +).squareRoot()
}

/// Values that one task squares or scales.
private let gradientPart = 1 << 16

/// Scales a gradient down to the norm `limit`, as torch's `clip_grad_norm_` does (1e-6 guards its division); 0 is no limit.
///
/// - Returns: the norm before.
@discardableResult public func clip(_ gradient: inout [Float], limit: Double) -> Double {
    let size = norm(gradient)
    guard limit > 0 else { return size }
    let factor = limit / (size + 1e-6)
    guard factor < 1 else { return size }
    let share = Float(factor)
    let count = gradient.count
    gradient.withUnsafeMutableBufferPointer { values in
        nonisolated(unsafe) let values = values
        Parallel.forEach(count: (count + gradientPart - 1) / gradientPart) { task in
            for index in Parallel.range(task, of: count, size: gradientPart) { values[index] *= share }
        }
    }
    return size
}
