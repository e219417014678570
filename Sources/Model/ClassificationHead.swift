/// A classifier behind an encoder and its loss, forward and backward, in float32.
///
/// Of each sequence one row x, its first token's state or the mean of all:
///
///     BERT      z = tanh(P x + p), frozen      RoBERTa   z = tanh(D x + d)      mean   z = x
///     logits = W z + b

import CKernels
import Checkpoints
import Glibc
import LinearAlgebra

final class ClassificationHead {
    private let summary: EncoderConfiguration.Summary
    private let hidden: Int
    private let pooler: (weight: [Float], bias: [Float])?
    /// x, z, and their gradients, `[sequences, hidden]` each; logits, `[sequences, labels]`.
    private let states = FloatBuffer()
    private let features = FloatBuffer()
    private let stateGradient = FloatBuffer()
    private let featureGradient = FloatBuffer()
    private let values = FloatBuffer()

    init(_ configuration: ModelConfiguration, pooler: (weight: [Float], bias: [Float])?) {
        summary = configuration.encoder?.summary ?? .mean
        hidden = configuration.hiddenSize
        self.pooler = pooler
    }

    /// Calls `body` with the linear map before tanh, if there is one.
    private func withDense(_ maps: [HeadMap], _ body: (_ weight: UnsafePointer<Float>, _ bias: UnsafePointer<Float>) -> Void) {
        if let pooler {
            pooler.weight.withUnsafeBufferPointer { weight in
                pooler.bias.withUnsafeBufferPointer { body(weight.baseAddress!, $0.baseAddress!) }
            }
        } else if maps.count == 2 {
            body(maps[0].weight, maps[0].bias)
        }
    }

    /// x and z, then the logits, which lie in `values`. Returns z.
    private func forward(
        _ output: UnsafePointer<Float>, _ sequences: [Range<Int>], _ maps: [HeadMap]
    ) -> UnsafeMutablePointer<Float> {
        let (path, count, hidden) = (KernelPath.active.rawValue, sequences.count, hidden)
        let x = states.reserve(count * hidden)
        for (index, sequence) in sequences.enumerated() {
            let row = x + index * hidden
            row.update(from: output + sequence.lowerBound * hidden, count: hidden)
            guard summary == .mean else { continue }
            for token in sequence.dropFirst() { tributary_add(path, row, output + token * hidden, hidden) }
            let share = 1 / Float(sequence.count)
            for column in 0..<hidden { row[column] *= share }
        }
        var z = x
        withDense(maps) { weight, bias in
            z = features.reserve(count * hidden)
            product(x, weight, bias, count: count, outputs: hidden, into: z)
            for index in 0..<count * hidden { z[index] = tanhf(z[index]) }
        }
        let last = maps[maps.count - 1]
        product(z, last.weight, last.bias, count: count, outputs: last.outputs, into: values.reserve(count * last.outputs))
        return z
    }

    /// y = x W^T + b.
    private func product(
        _ x: UnsafePointer<Float>, _ weight: UnsafePointer<Float>, _ bias: UnsafePointer<Float>, count: Int, outputs: Int,
        into y: UnsafeMutablePointer<Float>
    ) {
        for row in 0..<count { (y + row * outputs).update(from: bias, count: outputs) }
        gemm(
            transposeB: true, m: count, n: outputs, k: hidden, x, lda: hidden, weight, ldb: hidden, beta: 1, y, ldc: outputs)
    }

    /// Logits `[sequences, labels]`.
    func logits(_ output: UnsafePointer<Float>, _ sequences: [Range<Int>], _ maps: [HeadMap]) -> [Float] {
        _ = forward(output, sequences, maps)
        return Array(UnsafeBufferPointer(start: values.pointer, count: sequences.count * maps[maps.count - 1].outputs))
    }

    /// The loss of each sequence in nats, and gradients; the parameters are those of `BlockStack.losses`.
    func loss(
        _ output: UnsafePointer<Float>, _ sequences: [Range<Int>], _ maps: [HeadMap], labels: [Int32], scales: [Float],
        outputGradient: UnsafeMutablePointer<Float>?, gradient: GradientTarget?
    ) -> [Double] {
        let (path, count, hidden) = (KernelPath.active.rawValue, sequences.count, hidden)
        let z = forward(output, sequences, maps)
        let last = maps[maps.count - 1]
        let (outputs, logits) = (last.outputs, values.pointer)
        let losses = (0..<count).map { row in
            tributary_cross_entropy(
                path, logits + row * outputs, outputs, Int(labels[row]), scales.isEmpty ? 0 : scales[row])
        }
        guard !scales.isEmpty else { return losses }
        if let gradient { add(last, x: z, dy: logits, sequences, gradient) }
        guard outputGradient != nil || maps.count == 2 else { return losses }
        var dx = featureGradient.reserve(count * hidden)
        gemm(m: count, n: hidden, k: outputs, logits, lda: outputs, last.weight, ldb: hidden, dx, ldc: hidden)
        withDense(maps) { weight, _ in
            let dz = dx
            for index in 0..<count * hidden { dz[index] *= 1 - z[index] * z[index] }
            if let gradient, maps.count == 2 { add(maps[0], x: states.pointer, dy: dz, sequences, gradient) }
            dx = stateGradient.reserve(count * hidden)
            gemm(m: count, n: hidden, k: hidden, dz, lda: hidden, weight, ldb: hidden, dx, ldc: hidden)
        }
        if let outputGradient { spread(dx, sequences, into: outputGradient) }
        return losses
    }

    /// Adds dW = dy^T x and db = sum of dy, or puts them, for each part of the batch.
    private func add(
        _ map: HeadMap, x: UnsafePointer<Float>, dy: UnsafePointer<Float>, _ sequences: [Range<Int>], _ gradient: GradientTarget
    ) {
        var first = 0
        for (part, range) in gradient.parts.enumerated() {
            var end = first
            while end < sequences.count, sequences[end].upperBound <= range.upperBound { end += 1 }
            let target = gradient.gradient(part)
            if let place = map.gradientWeight {
                gemm(
                    transposeA: true, m: map.outputs, n: map.inputs, k: end - first, dy + first * map.outputs, lda: map.outputs,
                    x + first * map.inputs, ldb: map.inputs, beta: gradient.beta, target + place, ldc: map.inputs)
            }
            if let place = map.gradientBias {
                for output in 0..<map.outputs {
                    var sum: Float = gradient.isAdded ? target[place + output] : 0
                    for row in first..<end { sum += dy[row * map.outputs + output] }
                    target[place + output] = sum
                }
            }
            first = end
        }
    }

    /// The gradient of the states of all tokens from that of each sequence's x.
    private func spread(
        _ dx: UnsafePointer<Float>, _ sequences: [Range<Int>], into outputGradient: UnsafeMutablePointer<Float>
    ) {
        for (index, sequence) in sequences.enumerated() {
            let row = dx + index * hidden
            let first = outputGradient + sequence.lowerBound * hidden
            if summary == .mean {
                let share = 1 / Float(sequence.count)
                for column in 0..<hidden { first[column] = row[column] * share }
                for token in sequence.dropFirst() { (outputGradient + token * hidden).update(from: first, count: hidden) }
            } else {
                first.update(from: row, count: hidden)
                (first + hidden).update(repeating: 0, count: (sequence.count - 1) * hidden)
            }
        }
    }
}
