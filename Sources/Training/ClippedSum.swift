/// The sum that example-level differential privacy releases: clipped gradients of a step's examples (DP-SGD, Abadi et al. 2016,
/// arXiv:1607.00133, algorithm 1).

import Adapters
import CKernels
import Datasets
import LinearAlgebra
import Model
import Primitives
import Privacy

/// The sum of the examples' clipped gradients, formed in passes whose gradients fit into a limit.
package final class ClippedSum {
    /// Bytes that the gradients of single examples may take, unless one alone takes more.
    package static let memoryLimit = 256 << 20

    /// Values that one task squares, that one sums (they stay in the first-level cache), and that one adds noise to.
    private static let normPart = 1 << 16
    private static let sumPart = 1 << 11
    private static let noisePart = 1 << 13

    private let clip: Double
    private let perPass: Int
    private let gradients = FloatBuffer()
    private var squares: [Double] = []
    private var factors: [Double] = []
    /// One value for each trained parameter.
    package private(set) var values: [Double]

    /// - Parameter batchSize: examples that the model reads at once, at most
    package init(clip: Double, parameterCount: Int, batchSize: Int, memoryLimit: Int = ClippedSum.memoryLimit) {
        self.clip = clip
        values = [Double](repeating: 0, count: parameterCount)
        perPass = max(1, min(batchSize, memoryLimit / max(1, parameterCount * MemoryLayout<Float>.stride)))
    }

    /// Bytes that single gradients and their sum take.
    package static func byteCount(parameterCount: Int, batchSize: Int) -> Int {
        let one = parameterCount * MemoryLayout<Float>.stride
        return 2 * one + max(1, min(batchSize, memoryLimit / max(1, one))) * one
    }

    /// Makes `values` the sum over these examples of gradient x min(1, clip / norm), in their order, however they are
    /// spread over passes; zero if there is no example. An example whose loss or gradient is not finite is left out: ending
    /// the training there would tell that it was drawn.
    ///
    /// - Returns: each example's mean loss in nats
    /// - Throws: `Failure` if an example does not fit the model: what does not depend on the weights
    package func form(_ examples: [Example], model: AdaptedModel) throws(Failure) -> [Double] {
        values.withUnsafeMutableBufferPointer { $0.update(repeating: 0) }
        var losses: [Double] = []
        // Passes of equal size, rather than full ones and a small last one.
        let passes = (examples.count + perPass - 1) / perPass
        for pass in 0..<passes {
            let batch = TokenBatch(examples[pass * examples.count / passes..<(pass + 1) * examples.count / passes])
            let size = batch.sequenceCount * values.count
            let room = UnsafeMutableBufferPointer(start: gradients.reserve(size), count: size)
            let found = try model.perExampleGradients(batch, into: room)
            losses += found
            formFactors(found)
            addClipped()
        }
        return losses
    }

    /// `factors` of the first gradients; 0 where a loss or a gradient is not finite.
    private func formFactors(_ losses: [Double]) {
        let count = losses.count
        let parameters = values.count
        let parts = (parameters + Self.normPart - 1) / Self.normPart
        let path = KernelPath.active.rawValue
        let pointer = gradients.pointer
        squares = [Double](repeating: 0, count: count * parts)
        squares.withUnsafeMutableBufferPointer { squares in
            nonisolated(unsafe) let squares = squares
            Parallel.forEach(count: count * parts) { task in
                let range = Parallel.range(task % parts, of: parameters, size: Self.normPart)
                squares[task] = tributary_square_sum(path, pointer + task / parts * parameters + range.lowerBound, range.count)
            }
        }
        factors = (0..<count).map { example in
            let norm = squares[example * parts..<(example + 1) * parts].reduce(0, +).squareRoot()
            return losses[example].isFinite ? clippingFactor(norm: norm, limit: clip) : 0
        }
    }

    /// Adds the gradients times their factors, example by example for each value.
    private func addClipped() {
        let parameters = values.count
        let path = KernelPath.active.rawValue
        let (pointer, factors) = (gradients.pointer, factors)
        values.withUnsafeMutableBufferPointer { values in
            nonisolated(unsafe) let values = values
            Parallel.forEach(count: (parameters + Self.sumPart - 1) / Self.sumPart) { task in
                let range = Parallel.range(task, of: parameters, size: Self.sumPart)
                for (example, factor) in factors.enumerated() where factor > 0 {
                    tributary_add_scaled(
                        path, values.baseAddress! + range.lowerBound, pointer + example * parameters + range.lowerBound,
                        range.count, factor)
                }
            }
        }
    }

    /// What a step releases: (sum + noise) / expected batch size.
    func release(_ privacy: PrivateTraining, step: Int, into gradient: inout [Float]) {
        precondition(gradient.count == values.count, "\(values.count) values, \(gradient.count) gradients")
        let key = privacy.key.derived("noise of step \(step)")
        let deviation = privacy.noiseMultiplier * privacy.clip
        let size = Double(privacy.expectedBatchSize)
        let values = values
        gradient.withUnsafeMutableBufferPointer { gradient in
            nonisolated(unsafe) let gradient = gradient
            Parallel.forEach(count: (values.count + Self.noisePart - 1) / Self.noisePart) { task in
                let range = Parallel.range(task, of: values.count, size: Self.noisePart)
                var part = Array(values[range])
                addGaussianNoise(to: &part, standardDeviation: deviation, key: key, startingAt: range.lowerBound)
                for (index, value) in zip(range, part) { gradient[index] = Float(value / size) }
            }
        }
    }
}
