/// AdamW and SGD over flat floats, step by step as torch computes them.

import Glibc
import LinearAlgebra
import Plan

/// Changes an adapter's values along a gradient. Its state starts anew with each object: each federated round.
public struct Optimizer: Sendable {
    public let name: OptimizerName
    public let weightDecay: Double
    /// Steps taken.
    public private(set) var steps = 0
    /// Running means of the gradient and of its square; empty for SGD.
    private var first: [Float]
    private var second: [Float]

    // Kingma and Ba 2015 (arXiv:1412.6980), algorithm 1; decoupled decay after Loshchilov and Hutter 2019 (arXiv:1711.05101).
    public static let firstDecay = 0.9
    public static let secondDecay = 0.999
    public static let epsilon = 1e-8

    /// Values that one task works on: a multiple of every vector length, so that parts never share a cache line.
    private static let part = 1 << 16

    public init(_ name: OptimizerName, count: Int, weightDecay: Double = 0) {
        self.name = name
        self.weightDecay = weightDecay
        let stateCount = name == .adamw ? count : 0
        first = [Float](repeating: 0, count: stateCount)
        second = [Float](repeating: 0, count: stateCount)
    }

    /// One step: `values` and `gradient` have the count given at the start.
    public mutating func step(_ values: inout [Float], gradient: [Float], learningRate: Double) {
        precondition(values.count == gradient.count, "\(values.count) values, \(gradient.count) gradients")
        steps += 1
        switch name {
        case .adamw: adamW(&values, gradient, learningRate)
        case .sgd: Self.sgd(&values, gradient, learningRate, weightDecay)
        }
    }

    /// The order of operations is torch's (`_single_tensor_adam`), so that losses can be compared over many steps:
    ///
    ///     w = w (1 - eta lambda);  m = m + (g - m)(1 - b1);  v = v b2 + g g (1 - b2)
    ///     w = w - eta / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + epsilon)
    private mutating func adamW(_ values: inout [Float], _ gradient: [Float], _ learningRate: Double) {
        precondition(values.count == first.count, "\(values.count) values for a state of \(first.count)")
        let keep = Float(1 - learningRate * weightDecay)
        let firstShare = Float(1 - Self.firstDecay)
        let secondKeep = Float(Self.secondDecay)
        let secondShare = Float(1 - Self.secondDecay)
        let size = Float(learningRate / (1 - pow(Self.firstDecay, Double(steps))))
        let correction = Float((1 - pow(Self.secondDecay, Double(steps))).squareRoot())
        let epsilon = Float(Self.epsilon)
        let count = values.count
        values.withUnsafeMutableBufferPointer { values in
            first.withUnsafeMutableBufferPointer { first in
                second.withUnsafeMutableBufferPointer { second in
                    gradient.withUnsafeBufferPointer { gradient in
                        nonisolated(unsafe) let (w, m, v, g) = (values, first, second, gradient)
                        Parallel.forEach(count: (count + Self.part - 1) / Self.part) { task in
                            for index in Parallel.range(task, of: count, size: Self.part) {
                                let slope = g[index]
                                let mean = m[index] + (slope - m[index]) * firstShare
                                let square = v[index] * secondKeep + slope * slope * secondShare
                                m[index] = mean
                                v[index] = square
                                w[index] = w[index] * keep - size * (mean / (square.squareRoot() / correction + epsilon))
                            }
                        }
                    }
                }
            }
        }
    }

    /// w = w - eta (g + lambda w): plain gradient descent, as torch's SGD without momentum.
    private static func sgd(_ values: inout [Float], _ gradient: [Float], _ learningRate: Double, _ weightDecay: Double) {
        let rate = Float(learningRate)
        let decay = Float(weightDecay)
        let count = values.count
        values.withUnsafeMutableBufferPointer { values in
            gradient.withUnsafeBufferPointer { gradient in
                nonisolated(unsafe) let (w, g) = (values, gradient)
                Parallel.forEach(count: (count + part - 1) / part) { task in
                    for index in Parallel.range(task, of: count, size: part) {
                        w[index] -= rate * (g[index] + decay * w[index])
                    }
                }
            }
        }
    }
}

/// The Euclidean norm, summed in double, part by part in a fixed order.
public func norm(_ values: [Float]) -> Double {
    var total = 0.0
    values.withUnsafeBufferPointer { values in
        for start in stride(from: 0, to: values.count, by: 4096) {
            var sum = 0.0
            for index in start..<min(values.count, start + 4096) { sum += Double(values[index]) * Double(values[index]) }
            total += sum
        }
    }
    return total.squareRoot()
}

/// Scales a gradient down to the norm `limit`, as torch's `clip_grad_norm_` does (1e-6 guards its division); 0 is no limit.
///
/// - Returns: the norm before.
@discardableResult public func clip(_ gradient: inout [Float], limit: Double) -> Double {
    let size = norm(gradient)
    guard limit > 0 else { return size }
    let factor = limit / (size + 1e-6)
    guard factor < 1 else { return size }
    let share = Float(factor)
    gradient.withUnsafeMutableBufferPointer { values in
        for index in values.indices { values[index] *= share }
    }
    return size
}
