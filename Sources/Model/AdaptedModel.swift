/// A base model with an adapter: losses, gradients, logits, decoding.

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
    private var rotary: RotaryEmbedding
    private let head: LanguageHead
    private let workspace = BlockWorkspace()
    private var records: [BlockRecord] = []
    private var savedRecords: [SavedRecord] = []
    private var residuals: [FloatBuffer] = []
    private let residualGradient = FloatBuffer()
    private let predicting = FloatBuffer()
    private let predictingGradient = FloatBuffer()
    private let normed = FloatBuffer()
    private let inverses = FloatBuffer()

    /// - Throws: `Failure` if the adapter does not fit the model
    public init(model: LanguageModel, weights: AdapterWeights) throws(Failure) {
        self.model = model
        savedActivations = model.compute
        binding = try AdapterBinding(weights, model: model)
        rotary = RotaryEmbedding(model.configuration)
        head = LanguageHead(model.head, compute: model.compute)
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
    private var vocabulary: Int { model.configuration.vocabularySize }
    func shape(keepsAttended: Bool) -> BlockShape {
        BlockShape(
            model.configuration, projectionWidth: binding.projectionWidth, compute: model.compute, keepsAttended: keepsAttended)
    }

    private func check(_ batch: TokenBatch) throws(Failure) {
        try checkTokens(batch.tokens, vocabulary: vocabulary)
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
        gradient.withUnsafeMutableBufferPointer { values in
            for part in batch.parts(ofTokens: ActivationMemory.tokensAtOnce) {
                let rows = part.predictors
                loss += run(
                    part, rows, scales: [Float](repeating: gradientScale, count: rows.count),
                    lowestLayer: binding.lowestTrainedLayer,
                    gradient: values.baseAddress.map {
                        GradientTarget(base: $0, stride: 0, parts: [0..<part.tokens.count], isAdded: true)
                    }, dense: [:]
                ).reduce(0, +)
                count += rows.count
            }
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
            means += partGradients(part, into: UnsafeMutableBufferPointer(rebasing: gradients[places]))
        }
        return means
    }

    private func partGradients(_ batch: TokenBatch, into gradients: UnsafeMutableBufferPointer<Float>) -> [Double] {
        let parameters = trainedLayout.parameterCount
        let rows = batch.predictors
        var sequences: [Int] = []
        var counts = [Int](repeating: 0, count: batch.sequenceCount)
        var sequence = 0
        for row in rows {
            while row >= batch.starts[sequence + 1] { sequence += 1 }
            sequences.append(sequence)
            counts[sequence] += 1
        }
        if let base = gradients.baseAddress {
            for (sequence, count) in counts.enumerated() where count == 0 {
                (base + sequence * parameters).update(repeating: 0, count: parameters)
            }
        }
        let losses = run(
            batch, rows, scales: sequences.map { 1 / Float(counts[$0]) }, lowestLayer: binding.lowestTrainedLayer,
            gradient: gradients.baseAddress.map {
                GradientTarget(
                    base: $0, stride: parameters, parts: (0..<batch.sequenceCount).map(batch.sequence), isAdded: false)
            }, dense: [:])
        var means = [Double](repeating: 0, count: batch.sequenceCount)
        for (sequence, loss) in zip(sequences, losses) { means[sequence] += loss }
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
        let perLayer = LanguageModel.Place.allCases.count
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
            let rows = part.predictors
            _ = run(
                part, rows, scales: [Float](repeating: 1, count: rows.count), lowestLayer: buffers.map(\.layer).min()!,
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
        return batch.parts(ofTokens: ActivationMemory.tokensAtOnce).flatMap { partLoss($0) }
    }

    private func partLoss(_ batch: TokenBatch) -> [(loss: Double, targets: Int)] {
        let rows = batch.predictors
        var result = [(loss: Double, targets: Int)](repeating: (0, 0), count: batch.sequenceCount)
        guard !rows.isEmpty else { return result }
        let output = forward(batch, savedFrom: model.layers.count, shape(keepsAttended: false))
        let losses = head.loss(
            normedStates(output, rows), targets: rows.map { batch.tokens[$0 + 1] })
        var sequence = 0
        for (row, loss) in zip(rows, losses) {
            while row >= batch.starts[sequence + 1] { sequence += 1 }
            result[sequence].loss += loss
            result[sequence].targets += 1
        }
        return result
    }

    /// Logits of every token, `[tokens, vocabulary]`: for tests and small inputs.
    /// - Throws: `Failure` if a token is outside the vocabulary or a sequence is too long
    public func logits(_ batch: TokenBatch) throws(Failure) -> [Float] {
        try check(batch)
        guard !batch.tokens.isEmpty else { return [] }
        let states = normedStates(
            forward(batch, savedFrom: model.layers.count, shape(keepsAttended: false)), Array(batch.tokens.indices))
        return [Float](unsafeUninitializedCapacity: batch.tokens.count * vocabulary) { target, initialized in
            head.logits(states, count: batch.tokens.count, into: target.baseAddress!, lead: vocabulary)
            initialized = batch.tokens.count * vocabulary
        }
    }

    /// A decoder at these weights; it follows later calls of `load`, for tokens that it has not seen yet.
    public func makeDecoder() -> Decoder { Decoder(self) }

    // MARK: - How it runs

    /// The blocks whose activations are saved: those from the first index on that fit into the limit.
    private func firstSavedLayer(_ tokens: Int, lowest: Int, _ shape: BlockShape) -> Int {
        let perBlock = ActivationMemory.recordBytes(shape, tokens: tokens, saved: savedActivations)
        return max(lowest, model.layers.count - activationMemoryLimit / max(1, perBlock))
    }

    /// Hidden states after the last block, `[tokens, hidden]`. Inputs of the blocks from `savedFrom` on stay in
    /// `residuals[layer]`.
    private func forward(_ batch: TokenBatch, savedFrom: Int, _ shape: BlockShape) -> UnsafeMutablePointer<Float> {
        let tokens = batch.tokens.count
        let count = model.layers.count
        let firstSaved = firstSavedLayer(tokens, lowest: savedFrom, shape)
        // Record 0 is shared by the blocks that are not saved, or by all if records are saved rounded.
        let own = savedActivations == .float32 ? count - firstSaved : 0
        while records.count < 1 + own { records.append(BlockRecord()) }
        if own < count { records[0].reserve(shape, tokens: tokens) }
        for record in records[1..<1 + own] { record.reserve(shape, tokens: tokens) }
        if savedActivations != .float32, savedFrom < count {
            // One more than is kept: a block that runs again is rounded too.
            while savedRecords.count < 1 + count - firstSaved { savedRecords.append(SavedRecord()) }
        }
        let kept = count - savedFrom
        while residuals.count < kept + 3 { residuals.append(FloatBuffer()) }
        for buffer in residuals[0..<kept + 3] { buffer.reserve(tokens * hidden) }
        workspace.reserve(shape, tokens: tokens, backward: savedFrom < count)
        embed(batch.tokens, into: residual(0, savedFrom: savedFrom))
        withPlaces(batch) { places in
            for layer in 0..<count {
                let record = record(layer, firstSaved: firstSaved)
                block(layer, shape).forward(
                    residual(layer, savedFrom: savedFrom), places, record: record, workspace: workspace,
                    into: residual(layer + 1, savedFrom: savedFrom))
                if savedActivations != .float32, layer >= firstSaved { savedRecords[1 + layer - firstSaved].save(record) }
            }
        }
        return residual(count, savedFrom: savedFrom)
    }

    /// Where a block's input lies: blocks below `savedFrom` share two buffers in turn.
    private func residual(_ layer: Int, savedFrom: Int) -> UnsafeMutablePointer<Float> {
        residuals[layer < savedFrom ? layer & 1 : 2 + layer - savedFrom].pointer
    }

    private func record(_ layer: Int, firstSaved: Int) -> BlockRecord {
        records[savedActivations != .float32 || layer < firstSaved ? 0 : 1 + layer - firstSaved]
    }

    private func block(_ layer: Int, _ shape: BlockShape) -> Block {
        Block(shape: shape, layer: model.layers[layer], maps: binding.maps[layer])
    }

    /// Rows of the embedding, `[tokens, hidden]`.
    func embed(_ tokens: [Int32], into target: UnsafeMutablePointer<Float>) {
        let hidden = hidden
        forTokens(tokens.count) { range in
            for index in range {
                let row = Int(tokens[index])
                model.embedding.decode(rows: row..<row + 1, columns: 0..<hidden, into: target + index * hidden, stride: hidden)
            }
        }
    }

    private func withPlaces(_ batch: TokenBatch, _ body: (TokenPlaces) -> Void) {
        rotary.reserve(batch.longestSequence)
        batch.positions.withUnsafeBufferPointer { positions in
            rotary.cosines.withUnsafeBufferPointer { cosines in
                rotary.sines.withUnsafeBufferPointer { sines in
                    guard let positions = positions.baseAddress, let cosines = cosines.baseAddress, let sines = sines.baseAddress
                    else { return }
                    body(
                        TokenPlaces(
                            count: batch.tokens.count, sequences: (0..<batch.sequenceCount).map(batch.sequence),
                            positions: positions,
                            cosines: cosines, sines: sines))
                }
            }
        }
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
                path, gathered + first, hidden, model.finalNorm, range.count, hidden, epsilon, states + first, hidden,
                inverse + range.lowerBound)
        }
        return states
    }

    /// The losses of the rows that predict a target and, down to `lowestLayer`, gradients.
    ///
    /// - Parameters:
    ///   - rows: the batch's predictors
    ///   - scales: factor of each row's loss in the gradients
    private func run(
        _ batch: TokenBatch, _ rows: [Int], scales: [Float], lowestLayer: Int, gradient: GradientTarget?,
        dense: [Int: [Int: UnsafeMutablePointer<Float>]]
    ) -> [Double] {
        guard !rows.isEmpty else { return [] }
        let (tokens, count, hidden) = (batch.tokens.count, model.layers.count, hidden)
        let reads = dense.values.contains { $0[LanguageModel.Place.output.rawValue] != nil }
        let shape = shape(keepsAttended: reads || gradient != nil && binding.trainsOutputA)
        let output = forward(batch, savedFrom: lowestLayer, shape)
        let states = normedStates(output, rows)
        let targets = rows.map { batch.tokens[$0 + 1] }
        guard lowestLayer < count else { return head.loss(states, targets: targets) }
        let stateGradient = predictingGradient.reserve(rows.count * hidden)
        let losses = head.loss(states, targets: targets, scales: scales, gradient: stateGradient)
        let carried = residualGradient.reserve(tokens * hidden)
        carried.update(repeating: 0, count: tokens * hidden)
        let path = KernelPath.active.rawValue
        let (gathered, inverse) = (predicting.pointer, inverses.pointer)
        forTokens(rows.count) { range in
            for index in range {
                tributary_rms_norm_backward(
                    path, gathered + index * hidden, hidden, model.finalNorm, inverse + index, stateGradient + index * hidden,
                    hidden, 1,
                    hidden, carried + rows[index] * hidden, hidden, 0)
            }
        }
        let firstSaved = firstSavedLayer(tokens, lowest: lowestLayer, shape)
        withPlaces(batch) { places in
            for layer in (lowestLayer..<count).reversed() {
                let block = block(layer, shape)
                let input = residual(layer, savedFrom: lowestLayer)
                let record = record(layer, firstSaved: firstSaved)
                if layer < firstSaved {
                    // Its record was another block's since; its output goes where nobody reads it.
                    block.forward(input, places, record: record, workspace: workspace, into: residuals[0].pointer)
                }
                if savedActivations != .float32 {
                    let saved = savedRecords[max(0, 1 + layer - firstSaved)]
                    if layer < firstSaved { saved.save(record) }
                    saved.restore(record)
                }
                block.backward(
                    input, places, record: record, workspace: workspace, residualGradient: carried,
                    needsInput: layer > lowestLayer,
                    gradient: gradient, dense: dense[layer] ?? [:])
            }
        }
        return losses
    }
}

extension AdaptedModel {
    /// What a decoder needs for tokens that follow `past` others: hidden states of the last one, normed.
    func decode(_ tokens: [Int32], caches: [KeyValueCache], past: Int, memory: DecoderMemory) -> UnsafeMutablePointer<Float> {
        let count = tokens.count
        let (hidden, shape) = (model.configuration.hiddenSize, shape(keepsAttended: false))
        memory.record.reserve(shape, tokens: count)
        memory.workspace.reserve(shape, tokens: count, backward: false)
        memory.first.reserve(count * hidden)
        memory.second.reserve(count * hidden)
        memory.rotary.reserve(past + count)
        embed(tokens, into: memory.first.pointer)
        let positions = (past..<past + count).map(Int32.init)
        positions.withUnsafeBufferPointer { positions in
            memory.rotary.cosines.withUnsafeBufferPointer { cosines in
                memory.rotary.sines.withUnsafeBufferPointer { sines in
                    let places = TokenPlaces(
                        count: count, sequences: [0..<count], positions: positions.baseAddress!, cosines: cosines.baseAddress!,
                        sines: sines.baseAddress!)
                    for layer in model.layers.indices {
                        let (from, to) = layer & 1 == 0 ? (memory.first, memory.second) : (memory.second, memory.first)
                        Block(shape: shape, layer: model.layers[layer], maps: binding.maps[layer]).forward(
                            from.pointer, places, record: memory.record, workspace: memory.workspace, cache: caches[layer],
                            into: to.pointer)
                    }
                }
            }
        }
        let last = (model.layers.count & 1 == 0 ? memory.first : memory.second).pointer + (count - 1) * hidden
        let state = memory.state.reserve(hidden)
        tributary_rms_norm(
            KernelPath.active.rawValue, last, hidden, model.finalNorm, 1, hidden, model.configuration.rmsNormEpsilon, state,
            hidden, nil)
        return state
    }
}
