/// The blocks of a causal language model, its final norm and its head, as `AdaptedModel` runs them.

import CKernels
import Checkpoints
import LinearAlgebra
import Primitives

final class CausalStack: BlockStack {
    private let model: LanguageModel
    private let parts: LanguageModel.CausalParts
    private let head: LanguageHead
    private var rotary: RotaryEmbedding
    private let workspace = BlockWorkspace()
    private var records: [BlockRecord] = []
    private var tokens: [Int32] = []
    private var positions: [Int32] = []
    private var sequences: [Range<Int>] = []
    private var maps: [[AdaptedMap]] = []
    private var projectionWidth = 0
    private var keepsAttended = false
    private let predicting = FloatBuffer()
    private let predictingGradient = FloatBuffer()
    private let normed = FloatBuffer()
    private let inverses = FloatBuffer()

    init(_ model: LanguageModel, _ parts: LanguageModel.CausalParts) {
        self.model = model
        self.parts = parts
        head = LanguageHead(parts.head, compute: model.compute)
        rotary = RotaryEmbedding(model.configuration)
    }

    private var hidden: Int { model.configuration.hiddenSize }
    private var shape: BlockShape {
        BlockShape(
            model.configuration, projectionWidth: projectionWidth, compute: model.compute, keepsAttended: keepsAttended)
    }

    /// Whether the gradient of an A, or of a whole matrix, reads what attention wrote.
    private func readsAttended(_ binding: AdapterBinding, _ pass: BackwardPass) -> Bool {
        pass.densePlaces.contains(attentionOutputPlace) || pass.formsGradient && binding.trainsOutputA
    }

    func recordSizes(_ binding: AdapterBinding, tokens: Int, _ pass: BackwardPass) -> RecordSizes {
        BlockRecord.widths(
            BlockShape(
                model.configuration, projectionWidth: binding.projectionWidth, compute: model.compute,
                keepsAttended: readsAttended(binding, pass))
        ).sizes(tokens: tokens)
    }

    func record(_ index: Int) -> ActivationRecord { records[index] }

    func prepare(_ batch: TokenBatch, _ binding: AdapterBinding, records range: Range<Int>, backward: BackwardPass?) {
        keepsAttended = backward.map { readsAttended(binding, $0) } ?? false
        maps = binding.maps
        projectionWidth = binding.projectionWidth
        tokens = batch.tokens
        positions = batch.positions
        sequences = (0..<batch.sequenceCount).map(batch.sequence)
        rotary.reserve(batch.longestSequence)
        let shape = shape
        while records.count < range.upperBound { records.append(BlockRecord()) }
        for record in records[range] { record.reserve(shape, tokens: tokens.count) }
        workspace.reserve(shape, tokens: tokens.count, backward: backward != nil)
    }

    func embed(into target: UnsafeMutablePointer<Float>) { model.embed(tokens, into: target) }

    private func block(_ layer: Int) -> Block {
        Block(shape: shape, layer: parts.layers[layer], maps: maps[layer])
    }

    private func withPlaces(_ body: (TokenPlaces) -> Void) {
        positions.withUnsafeBufferPointer { positions in
            rotary.cosines.withUnsafeBufferPointer { cosines in
                rotary.sines.withUnsafeBufferPointer { sines in
                    guard let positions = positions.baseAddress, let cosines = cosines.baseAddress, let sines = sines.baseAddress
                    else { return }
                    body(
                        TokenPlaces(
                            count: tokens.count, sequences: sequences, positions: positions, cosines: cosines, sines: sines))
                }
            }
        }
    }

    func forward(_ layer: Int, _ x: UnsafePointer<Float>, record: Int, into y: UnsafeMutablePointer<Float>) {
        withPlaces { block(layer).forward(x, $0, record: records[record], workspace: workspace, into: y) }
    }

    func backward(
        _ layer: Int, _ x: UnsafePointer<Float>, record: Int, residualGradient: UnsafeMutablePointer<Float>, needsInput: Bool,
        gradient: GradientTarget?, dense: [Int: UnsafeMutablePointer<Float>]
    ) {
        withPlaces {
            block(layer).backward(
                x, $0, record: records[record], workspace: workspace, residualGradient: residualGradient, needsInput: needsInput,
                gradient: gradient, dense: dense)
        }
    }

    func targets(_ batch: TokenBatch) -> LossTargets {
        var targets = LossTargets()
        for index in 0..<batch.sequenceCount {
            for token in batch.sequence(index).dropFirst() where batch.targets[token] {
                targets.rows.append(token - 1)
                targets.classes.append(batch.tokens[token])
                targets.sequences.append(index)
            }
        }
        return targets
    }

    /// The final norm of some rows of the last block's output; the rows themselves stay in `predicting`.
    private func normedStates(_ output: UnsafePointer<Float>, _ rows: [Int]) -> UnsafeMutablePointer<Float> {
        let (hidden, epsilon) = (hidden, model.configuration.rmsNormEpsilon)
        let gathered = predicting.reserve(rows.count * hidden)
        let states = normed.reserve(rows.count * hidden)
        let inverse = inverses.reserve(rows.count)
        let path = KernelPath.active.rawValue
        forTokens(rows.count) { range in
            for index in range { (gathered + index * hidden).update(from: output + rows[index] * hidden, count: hidden) }
            let first = range.lowerBound * hidden
            tributary_rms_norm(
                path, gathered + first, hidden, parts.finalNorm, range.count, hidden, epsilon, states + first, hidden,
                inverse + range.lowerBound)
        }
        return states
    }

    func losses(
        _ output: UnsafePointer<Float>, _ targets: LossTargets, scales: [Float], outputGradient: UnsafeMutablePointer<Float>?,
        gradient: GradientTarget?
    ) -> [Double] {
        let (rows, hidden) = (targets.rows, hidden)
        let states = normedStates(output, rows)
        guard let outputGradient else { return head.loss(states, targets: targets.classes) }
        let stateGradient = predictingGradient.reserve(rows.count * hidden)
        let losses = head.loss(states, targets: targets.classes, scales: scales, gradient: stateGradient)
        outputGradient.update(repeating: 0, count: tokens.count * hidden)
        let path = KernelPath.active.rawValue
        let (gathered, inverse) = (predicting.pointer, inverses.pointer)
        forTokens(rows.count) { range in
            for index in range {
                tributary_rms_norm_backward(
                    path, gathered + index * hidden, hidden, parts.finalNorm, inverse + index, stateGradient + index * hidden,
                    hidden, 1, hidden, outputGradient + rows[index] * hidden, hidden, 0)
            }
        }
        return losses
    }

    func logits(_ output: UnsafePointer<Float>, rows: [Int]) -> [Float] {
        let vocabulary = model.configuration.vocabularySize
        let states = normedStates(output, rows)
        return [Float](unsafeUninitializedCapacity: rows.count * vocabulary) { target, initialized in
            head.logits(states, count: rows.count, into: target.baseAddress!, lead: vocabulary)
            initialized = rows.count * vocabulary
        }
    }
}
