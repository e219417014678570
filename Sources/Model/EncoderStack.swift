/// The blocks of BERT and RoBERTa, their embeddings and the classifier behind them, as `AdaptedModel` runs them.

import CKernels
import Checkpoints
import LinearAlgebra
import Primitives

final class EncoderStack: BlockStack {
    private let model: LanguageModel
    private let parts: EncoderParts
    private let head: ClassificationHead
    private let workspace = EncoderWorkspace()
    private var records: [EncoderRecord] = []
    private var tokens: [Int32] = []
    private var positions: [Int32] = []
    private var sequences: [Range<Int>] = []
    private var maps: [[AdaptedMap]] = []
    private var headMaps: [HeadMap] = []
    private var projectionWidth = 0

    init(_ model: LanguageModel, _ parts: EncoderParts) {
        self.model = model
        self.parts = parts
        head = ClassificationHead(model.configuration, pooler: parts.pooler)
    }

    private func shape(_ projectionWidth: Int) -> EncoderShape {
        EncoderShape(model.configuration, projectionWidth: projectionWidth, compute: model.compute)
    }

    func recordSizes(_ binding: AdapterBinding, tokens: Int, _ pass: BackwardPass) -> RecordSizes {
        EncoderRecord.widths(shape(binding.projectionWidth)).sizes(tokens: tokens)
    }

    func record(_ index: Int) -> ActivationRecord { records[index] }

    func prepare(_ batch: TokenBatch, _ binding: AdapterBinding, records range: Range<Int>, backward: BackwardPass?) {
        maps = binding.maps
        headMaps = binding.head
        projectionWidth = binding.projectionWidth
        tokens = batch.tokens
        positions = batch.positions
        sequences = (0..<batch.sequenceCount).map(batch.sequence)
        let shape = shape(projectionWidth)
        while records.count < range.upperBound { records.append(EncoderRecord()) }
        for record in records[range] { record.reserve(shape, tokens: tokens.count) }
        workspace.reserve(shape, tokens: tokens.count, backward: backward != nil)
    }

    /// norm(word + position + token type 0).
    func embed(into target: UnsafeMutablePointer<Float>) {
        model.embed(tokens, into: target)
        let path = KernelPath.active.rawValue
        let (hidden, epsilon) = (model.configuration.hiddenSize, model.configuration.encoder?.layerNormEpsilon ?? 0)
        parts.positions.withUnsafeBufferPointer { table in
            forTokens(tokens.count) { range in
                for token in range {
                    tributary_add(path, target + token * hidden, table.baseAddress! + Int(positions[token]) * hidden, hidden)
                }
                let rows = target + range.lowerBound * hidden
                tributary_layer_norm(
                    path, rows, parts.embeddingNorm.weight, parts.embeddingNorm.bias, range.count, hidden, epsilon, rows, nil, 0,
                    nil)
            }
        }
    }

    private func block(_ layer: Int, _ record: Int) -> EncoderBlock {
        EncoderBlock(
            shape: shape(projectionWidth), norms: parts.norms[layer], maps: maps[layer], tokens: tokens.count,
            sequences: sequences, record: records[record], workspace: workspace)
    }

    func forward(_ layer: Int, _ x: UnsafePointer<Float>, record: Int, into y: UnsafeMutablePointer<Float>) {
        block(layer, record).forward(x, into: y)
    }

    func backward(
        _ layer: Int, _ x: UnsafePointer<Float>, record: Int, residualGradient: UnsafeMutablePointer<Float>, needsInput: Bool,
        gradient: GradientTarget?, dense: [Int: UnsafeMutablePointer<Float>]
    ) {
        block(layer, record).backward(
            x, residualGradient: residualGradient, needsInput: needsInput, gradient: gradient, dense: dense)
    }

    func targets(_ batch: TokenBatch) throws(Failure) -> LossTargets {
        try checkNotEmpty(batch)
        guard batch.labels.count == batch.sequenceCount else {
            throw Failure(
                .badData, "\(batch.sequenceCount) sequences without labels: a classifier's loss needs the label of each")
        }
        let count = model.headMaps.last?.outputs ?? 0
        if let label = batch.labels.first(where: { $0 < 0 || Int($0) >= count }) {
            throw Failure(.badData, "label \(label) is none of the model's \(count) labels, which count from 0")
        }
        return LossTargets(
            rows: Array(batch.starts.dropLast()), classes: batch.labels, sequences: Array(0..<batch.sequenceCount))
    }

    func losses(
        _ output: UnsafePointer<Float>, _ targets: LossTargets, scales: [Float], outputGradient: UnsafeMutablePointer<Float>?,
        gradient: GradientTarget?
    ) -> [Double] {
        head.loss(
            output, sequences, headMaps, labels: targets.classes, scales: scales, outputGradient: outputGradient,
            gradient: gradient)
    }

    func logits(_ output: UnsafePointer<Float>, rows: [Int]) -> [Float] { head.logits(output, sequences, headMaps) }
}
