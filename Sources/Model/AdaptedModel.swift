/// A base model with an adapter: losses, gradients, logits, labels, decoding.

import Adapters
import CKernels
import Checkpoints
import LinearAlgebra
import Primitives
import Quantization

/// The frozen base and one adapter's weights, with the memory that running them takes.
///
/// Not to be used from two threads at once; many of them may share one `LanguageModel`.
public final class AdaptedModel {
    public let model: LanguageModel
    /// Bytes that saved activations may take. Blocks beyond it are run again in the backward pass, which costs half as
    /// much time more and gives the same bits.
    public var activationMemoryLimit = ActivationMemory.defaultLimit
    /// What blocks' activations are rounded to while they wait for the backward pass.
    public var savedActivations: ComputeType

    private(set) var binding: AdapterBinding
    private let stack: any BlockStack
    private var savedRecords: [SavedRecord] = []
    private var residuals: [FloatBuffer] = []
    private let residualGradient = FloatBuffer()

    /// - Throws: `Failure` if the adapter does not fit the model
    public init(model: LanguageModel, weights: AdapterWeights) throws(Failure) {
        self.model = model
        savedActivations = model.compute
        binding = try AdapterBinding(weights, model: model)
        stack =
            switch model.parts {
            case .causal(let parts): CausalStack(model, parts)
            case .encoder(let parts): EncoderStack(model, parts)
            }
    }

    /// Takes other weights, of the same layouts or of others.
    /// - Throws: `Failure` if they do not fit the model
    public func load(_ weights: AdapterWeights) throws(Failure) {
        if binding.accepts(weights) {
            binding.update(weights)
        } else {
            binding = try AdapterBinding(weights, model: model)
        }
    }

    /// Keeps activations as planned.
    public func use(_ plan: MemoryPlan) {
        savedActivations = plan.savedActivations
        activationMemoryLimit = plan.activationLimit
    }

    /// The adapter's present values.
    public var weights: AdapterWeights { binding.weights }
    /// What is trained.
    public var trainedLayout: AdapterLayout { binding.trainedLayout }

    /// Changes the trained values where the model reads them: `trainedLayout.parameterCount` floats.
    package func withTrainedValues(_ body: (UnsafeMutableBufferPointer<Float>) -> Void) { binding.withTrainedValues(body) }

    private var hidden: Int { model.configuration.hiddenSize }
    private var count: Int { model.blocks.count }

    private func check(_ batch: TokenBatch) throws(Failure) {
        try checkTokens(batch.tokens, vocabulary: model.configuration.vocabularySize)
        try checkLength(batch.longestSequence, maximum: model.configuration.maximumPositions)
    }

    /// Adds the gradients of (sum of losses in nats) x `gradientScale` to `gradient`.
    ///
    /// - Parameter gradient: `weights.trained.layout.parameterCount` floats
    /// - Returns: the sum of the losses of all targets in nats, and their number
    /// - Throws: `Failure` if a token is outside the vocabulary or a sequence is too long
    public func lossAndGradient(
        _ batch: TokenBatch, gradientScale: Float, gradient: inout [Float]
    ) throws(Failure) -> (loss: Double, targets: Int) {
        precondition(
            gradient.count == trainedLayout.parameterCount,
            "a gradient of \(gradient.count) for \(trainedLayout.parameterCount) parameters")
        try check(batch)
        var (loss, count) = (0.0, 0)
        for part in batch.parts(ofTokens: ActivationMemory.tokensAtOnce) {
            let targets = try stack.targets(part)
            count += targets.count
            loss += gradient.withUnsafeMutableBufferPointer { values in
                run(
                    part, targets, scales: [Float](repeating: gradientScale, count: targets.count),
                    lowestLayer: binding.lowestTrainedLayer,
                    gradient: values.baseAddress.map {
                        GradientTarget(base: $0, stride: 0, parts: [0..<part.tokens.count], isAdded: true)
                    }, dense: [:])
            }.reduce(0, +)
        }
        return (loss, count)
    }

    /// Each sequence's own gradient of the mean loss over its own targets, from one forward and one backward pass: the
    /// base's part is that of the whole batch, and only the trained tensors' gradients are formed sequence by sequence.
    ///
    /// - Parameter gradients: `[sequences, parameterCount]`, overwritten; zero for a sequence without a target
    /// - Returns: each sequence's mean loss in nats; 0 without a target
    /// - Throws: `Failure` if a token is outside the vocabulary or a sequence is too long
    public func perExampleGradients(
        _ batch: TokenBatch, into gradients: UnsafeMutableBufferPointer<Float>
    ) throws(Failure) -> [Double] {
        let parameters = trainedLayout.parameterCount
        precondition(
            gradients.count == batch.sequenceCount * parameters,
            "room for \(gradients.count) values, not for \(batch.sequenceCount) gradients of \(parameters)")
        try check(batch)
        var means: [Double] = []
        for part in batch.parts(ofTokens: ActivationMemory.tokensAtOnce) {
            let places = means.count * parameters..<(means.count + part.sequenceCount) * parameters
            means += try partGradients(part, into: UnsafeMutableBufferPointer(rebasing: gradients[places]))
        }
        return means
    }

    private func partGradients(
        _ batch: TokenBatch, into gradients: UnsafeMutableBufferPointer<Float>
    ) throws(Failure) -> [Double] {
        let parameters = trainedLayout.parameterCount
        let targets = try stack.targets(batch)
        var counts = [Int](repeating: 0, count: batch.sequenceCount)
        for sequence in targets.sequences { counts[sequence] += 1 }
        if let base = gradients.baseAddress {
            for (sequence, count) in counts.enumerated() where count == 0 {
                (base + sequence * parameters).update(repeating: 0, count: parameters)
            }
        }
        let losses = run(
            batch, targets, scales: targets.sequences.map { 1 / Float(counts[$0]) }, lowestLayer: binding.lowestTrainedLayer,
            gradient: gradients.baseAddress.map {
                GradientTarget(
                    base: $0, stride: parameters, parts: (0..<batch.sequenceCount).map(batch.sequence), isAdded: false)
            }, dense: [:])
        var means = [Double](repeating: 0, count: batch.sequenceCount)
        for (sequence, loss) in zip(targets.sequences, losses) { means[sequence] += loss }
        for sequence in means.indices { means[sequence] /= Double(max(1, counts[sequence])) }
        return means
    }

    /// Adds dW of the sum of losses in nats to `gradients` for the named maps, `[outputs, inputs]` each, at the adapter's
    /// present weights. One pass, whatever the number of maps; choose it by the memory that the gradients take.
    ///
    /// - Throws: `Failure` if a name is no linear map of the model, or the batch is wrong
    public func denseGradient(
        _ batch: TokenBatch, maps: [String], into gradients: inout [String: [Float]]
    ) throws(Failure) {
        try check(batch)
        guard !maps.isEmpty else { return }
        let perLayer = model.mapsPerBlock
        var buffers: [(name: String, layer: Int, place: Int, values: UnsafeMutableBufferPointer<Float>)] = []
        defer { for buffer in buffers { buffer.values.deallocate() } }
        for name in maps {
            guard let index = model.linearMaps.firstIndex(where: { $0.name == name }) else {
                throw Failure(.usage, "\(name) is no linear map of the model")
            }
            let map = model.linearMaps[index]
            let values = UnsafeMutableBufferPointer<Float>.allocate(capacity: map.outputs * map.inputs)
            values.initialize(repeating: 0)
            buffers.append((name, index / perLayer, index % perLayer, values))
        }
        var dense: [Int: [Int: UnsafeMutablePointer<Float>]] = [:]
        for buffer in buffers { dense[buffer.layer, default: [:]][buffer.place] = buffer.values.baseAddress }
        for part in batch.parts(ofTokens: ActivationMemory.tokensAtOnce) {
            let targets = try stack.targets(part)
            _ = run(
                part, targets, scales: [Float](repeating: 1, count: targets.count), lowestLayer: buffers.map(\.layer).min()!,
                gradient: nil, dense: dense)
        }
        for buffer in buffers {
            let path = KernelPath.active.rawValue
            gradients[buffer.name, default: [Float](repeating: 0, count: buffer.values.count)].withUnsafeMutableBufferPointer {
                precondition($0.count == buffer.values.count, "a gradient of \($0.count) values for \(buffer.name)")
                tributary_add(path, $0.baseAddress!, buffer.values.baseAddress!, buffer.values.count)
            }
        }
    }

    /// The sum of losses in nats and the number of targets of each sequence.
    /// - Throws: `Failure` if a token is outside the vocabulary or a sequence is too long
    public func loss(_ batch: TokenBatch) throws(Failure) -> [(loss: Double, targets: Int)] {
        try check(batch)
        var result: [(loss: Double, targets: Int)] = []
        for part in batch.parts(ofTokens: ActivationMemory.tokensAtOnce) { result += try partLoss(part) }
        return result
    }

    private func partLoss(_ batch: TokenBatch) throws(Failure) -> [(loss: Double, targets: Int)] {
        let targets = try stack.targets(batch)
        var result = [(loss: Double, targets: Int)](repeating: (0, 0), count: batch.sequenceCount)
        guard targets.count > 0 else { return result }
        let losses = stack.losses(
            forward(batch, savedFrom: count), targets, scales: [], outputGradient: nil, gradient: nil)
        for (sequence, loss) in zip(targets.sequences, losses) {
            result[sequence].loss += loss
            result[sequence].targets += 1
        }
        return result
    }

    /// Logits of every token, `[tokens, vocabulary]`: for tests and small inputs.
    /// - Throws: `Failure` if a token is outside the vocabulary, a sequence is too long, or the model classifies
    public func logits(_ batch: TokenBatch) throws(Failure) -> [Float] {
        guard case .causal = model.task else { throw Failure(.usage, "a classifier has no logits of tokens") }
        try check(batch)
        guard !batch.tokens.isEmpty else { return [] }
        return stack.logits(forward(batch, savedFrom: count), rows: Array(batch.tokens.indices))
    }

    /// Logits of every sequence's labels, `[sequences, labels]`.
    /// - Throws: `Failure` if a token is outside the vocabulary, a sequence is empty or too long, or the model predicts tokens
    public func classLogits(_ batch: TokenBatch) throws(Failure) -> [Float] {
        guard case .classify = model.task else { throw Failure(.usage, "a model that predicts tokens has no labels") }
        try check(batch)
        try checkNotEmpty(batch)
        guard batch.sequenceCount > 0 else { return [] }
        return batch.parts(ofTokens: ActivationMemory.tokensAtOnce).flatMap { part in
            stack.logits(forward(part, savedFrom: count), rows: [])
        }
    }

    /// A decoder at a causal model's weights; it follows later calls of `load`, for tokens that it has not seen yet.
    public func makeDecoder() -> Decoder { Decoder(self) }

    // MARK: - How it runs

    /// The blocks whose activations are saved: those from the first index on that fit into the limit.
    private func firstSavedLayer(_ tokens: Int, lowest: Int, _ pass: BackwardPass) -> Int {
        let perBlock = ActivationMemory.bytes(stack.recordSizes(binding, tokens: tokens, pass), saved: savedActivations)
        return max(lowest, count - activationMemoryLimit / max(1, perBlock))
    }

    /// Hidden states after the last block, `[tokens, hidden]`. Inputs of the blocks from `savedFrom` on stay in
    /// `residuals[layer]`.
    private func forward(
        _ batch: TokenBatch, savedFrom: Int, _ pass: BackwardPass? = nil
    ) -> UnsafeMutablePointer<Float> {
        let tokens = batch.tokens.count
        let firstSaved = pass.map { firstSavedLayer(tokens, lowest: savedFrom, $0) } ?? count
        // Record 0 is shared by the blocks that are not saved, or by all if records are saved rounded.
        let own = roundsRecords ? 0 : count - firstSaved
        stack.prepare(batch, binding, records: (own < count ? 0 : 1)..<1 + own, backward: pass)
        if roundsRecords, pass != nil {
            // One more than is kept: a block that runs again is rounded too.
            while savedRecords.count < 1 + count - firstSaved { savedRecords.append(SavedRecord()) }
        }
        let kept = count - savedFrom
        while residuals.count < kept + 3 { residuals.append(FloatBuffer()) }
        for buffer in residuals[0..<kept + 3] { buffer.reserve(tokens * hidden) }
        stack.embed(into: residual(0, savedFrom: savedFrom))
        for layer in 0..<count {
            let record = record(layer, firstSaved: firstSaved)
            stack.forward(
                layer, residual(layer, savedFrom: savedFrom), record: record, into: residual(layer + 1, savedFrom: savedFrom))
            if roundsRecords, layer >= firstSaved { savedRecords[1 + layer - firstSaved].save(stack.record(record)) }
        }
        return residual(count, savedFrom: savedFrom)
    }

    /// Where a block's input lies: blocks below `savedFrom` share two buffers in turn.
    private func residual(_ layer: Int, savedFrom: Int) -> UnsafeMutablePointer<Float> {
        residuals[layer < savedFrom ? layer & 1 : 2 + layer - savedFrom].pointer
    }

    private func record(_ layer: Int, firstSaved: Int) -> Int {
        roundsRecords || layer < firstSaved ? 0 : 1 + layer - firstSaved
    }

    private var roundsRecords: Bool { savedActivations != .float32 }

    /// The losses of the batch's targets and, down to `lowestLayer`, gradients.
    ///
    /// - Parameter scales: factor of each target's loss in the gradients
    private func run(
        _ batch: TokenBatch, _ targets: LossTargets, scales: [Float], lowestLayer: Int, gradient: GradientTarget?,
        dense: [Int: [Int: UnsafeMutablePointer<Float>]]
    ) -> [Double] {
        guard targets.count > 0 else { return [] }
        let tokens = batch.tokens.count
        let pass = BackwardPass(formsGradient: gradient != nil, densePlaces: Set(dense.values.flatMap(\.keys)))
        let output = forward(batch, savedFrom: lowestLayer, lowestLayer < count ? pass : nil)
        let carried = lowestLayer < count ? residualGradient.reserve(tokens * hidden) : nil
        let losses = stack.losses(output, targets, scales: scales, outputGradient: carried, gradient: gradient)
        guard let carried else { return losses }
        let firstSaved = firstSavedLayer(tokens, lowest: lowestLayer, pass)
        for layer in (lowestLayer..<count).reversed() {
            let input = residual(layer, savedFrom: lowestLayer)
            let record = record(layer, firstSaved: firstSaved)
            // Its record was another block's since; its output goes where nobody reads it.
            if layer < firstSaved { stack.forward(layer, input, record: record, into: residuals[0].pointer) }
            if roundsRecords {
                let saved = savedRecords[max(0, 1 + layer - firstSaved)]
                if layer < firstSaved { saved.save(stack.record(record)) }
                saved.restore(stack.record(record))
            }
            stack.backward(
                layer, input, record: record, residualGradient: carried, needsInput: layer > lowestLayer, gradient: gradient,
                dense: dense[layer] ?? [:])
        }
        return losses
    }
}

extension AdaptedModel {
    /// What a decoder needs for tokens that follow `past` others: hidden states of the last one, normed.
    func decode(_ tokens: [Int32], caches: [KeyValueCache], past: Int, memory: DecoderMemory) -> UnsafeMutablePointer<Float> {
        guard case .causal(let parts) = model.parts else { preconditionFailure("an encoder decodes nothing") }
        let (hidden, count) = (model.configuration.hiddenSize, tokens.count)
        let shape = BlockShape(
            model.configuration, projectionWidth: binding.projectionWidth, compute: model.compute, keepsAttended: false)
        memory.record.reserve(shape, tokens: count)
        memory.workspace.reserve(shape, tokens: count, backward: false)
        memory.first.reserve(count * hidden)
        memory.second.reserve(count * hidden)
        memory.rotary.reserve(past + count)
        model.embed(tokens, into: memory.first.pointer)
        let positions = (past..<past + count).map(Int32.init)
        positions.withUnsafeBufferPointer { positions in
            memory.rotary.cosines.withUnsafeBufferPointer { cosines in
                memory.rotary.sines.withUnsafeBufferPointer { sines in
                    let places = TokenPlaces(
                        count: count, sequences: [0..<count], positions: positions.baseAddress!, cosines: cosines.baseAddress!,
                        sines: sines.baseAddress!)
                    for layer in parts.layers.indices {
                        let (from, to) = layer & 1 == 0 ? (memory.first, memory.second) : (memory.second, memory.first)
                        Block(shape: shape, layer: parts.layers[layer], maps: binding.maps[layer]).forward(
                            from.pointer, places, record: memory.record, workspace: memory.workspace, cache: caches[layer],
                            into: to.pointer)
                    }
                }
            }
        }
        let last = (parts.layers.count & 1 == 0 ? memory.first : memory.second).pointer + (count - 1) * hidden
        let state = memory.state.reserve(hidden)
        tributary_rms_norm(
            KernelPath.active.rawValue, last, hidden, parts.finalNorm, 1, hidden, model.configuration.rmsNormEpsilon, state,
            hidden, nil)
        return state
    }
}
