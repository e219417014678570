/// An adapter's tensors put where the linear maps find them.

import Adapters
import Checkpoints
import LinearAlgebra
import Primitives
import Quantization

/// One low-rank branch beside a frozen matrix: y += scale (x A^T) R^T B^T, where R may be absent.
struct Branch {
    let rank: Int
    let scale: Float
    /// `[rank, inputs]`.
    let a: UnsafePointer<Float>
    /// `[outputs, rank]`.
    let b: UnsafePointer<Float>
    /// `[rank, rank]`; nil stands for the identity.
    let core: UnsafePointer<Float>?
    /// Where the gradient of A, B and R lies in the flat gradient; nil if it is not trained.
    let gradientA: Int?
    let gradientB: Int?
    let gradientCore: Int?
    /// Floats a token before this branch's u = x A^T (and, with R, h = u R^T behind it) in the layer's record.
    let offset: Int

    /// Floats a token in the layer's record.
    var width: Int { core == nil ? rank : 2 * rank }
    var isTrained: Bool { gradientA != nil || gradientB != nil || gradientCore != nil }
}

/// A linear map as it runs: the frozen matrix, its bias, and its branches (the adapter's, then the correction's).
struct AdaptedMap {
    let name: String
    let weight: QuantizedMatrix
    let bias: [Float]?
    let branches: [Branch]

    var outputs: Int { weight.rows }
    var inputs: Int { weight.columns }
}

/// A linear map of a classifier's head, in float32.
struct HeadMap {
    let outputs: Int
    let inputs: Int
    /// `[outputs, inputs]` and `[outputs]`.
    let weight: UnsafePointer<Float>
    let bias: UnsafePointer<Float>
    /// Where their gradients lie in the flat gradient; nil if they are not trained.
    let gradientWeight: Int?
    let gradientBias: Int?
}

/// The adapter's values in one block of memory, and for each layer its maps with pointers into that block.
final class AdapterBinding {
    private let values = FloatBuffer()
    /// The checkpoint's own head, where the adapter brings none.
    private let ownHead = FloatBuffer()
    private let layouts: [AdapterLayout?]
    /// `[layer][place]`.
    private(set) var maps: [[AdaptedMap]]
    /// A correction that is added to its matrix, which takes less time than the branch.
    private struct Summed {
        let layer: Int
        let place: Int
        /// Without the correction.
        let weight: QuantizedMatrix
        let rank: Int
        let scale: Float
        /// Where A and B lie in the correction's values.
        let a: Int
        let b: Int
    }
    private let summed: [Summed]
    private let compute: ComputeType
    /// Held where some of it is summed.
    private var correction: AdapterState?
    /// Floats a token of the widest layer's branches.
    let projectionWidth: Int
    /// The lowest layer with a trained branch; the number of layers if there is none.
    let lowestTrainedLayer: Int
    /// Whether some layer trains an A that reads what attention wrote.
    let trainsOutputA: Bool
    /// In the order of `LanguageModel.headMaps`; empty for causal models.
    let head: [HeadMap]

    /// - Throws: `Failure` if a tensor belongs to no linear map of the model, has a shape that does not fit it, or lacks
    ///   its counterpart; or if a classifier has no head
    init(_ weights: AdapterWeights, model: LanguageModel) throws(Failure) {
        layouts = weights.layouts
        compute = model.compute
        let base = values.reserve(max(1, layouts.reduce(0) { $0 + ($1?.parameterCount ?? 0) }))
        struct Piece {
            let tensor: AdapterTensor
            let pointer: UnsafePointer<Float>
            let gradient: Int?
            /// In its state's values.
            let place: Int
        }
        let known = Dictionary(uniqueKeysWithValues: model.linearMaps.map { ($0.name, $0) })
        let knownHead = Dictionary(uniqueKeysWithValues: model.headMaps.map { ($0.name, $0) })
        var pieces: [String: [AdapterRole: Piece]] = [:]
        var start = 0
        for (number, layout) in layouts.enumerated() {
            guard let layout else { continue }
            for (index, tensor) in layout.tensors.enumerated() {
                guard !tensor.role.isHead || !model.headMaps.isEmpty else {
                    throw Failure(
                        .badData,
                        "the adapter has a head \(tensor.map), but this model predicts tokens: adapter and base do not belong together"
                    )
                }
                guard let map = (tensor.role.isHead ? knownHead : known)[tensor.map] else {
                    throw Failure(
                        .badData,
                        "the adapter has a tensor for \(tensor.map), which is no \(tensor.role.isHead ? "part of this model's head" : "linear map of this model"): adapter and base do not belong together"
                    )
                }
                let shape: (rows: Int, columns: Int) =
                    switch tensor.role {
                    case .loraA, .stackA: (tensor.rank, map.inputs)
                    case .loraB, .stackB: (map.outputs, tensor.rank)
                    case .core: (tensor.rank, tensor.rank)
                    case .headWeight: (map.outputs, map.inputs)
                    case .headBias: (map.outputs, 1)
                    }
                guard tensor.rank > 0 || tensor.role.isHead, tensor.rows == shape.rows, tensor.columns == shape.columns else {
                    throw Failure(
                        .badData,
                        "the adapter's tensor \(tensor.role) of \(tensor.map) is \(tensor.rows) x \(tensor.columns) with rank \(tensor.rank), but a \(map.outputs) x \(map.inputs) matrix needs \(shape.rows) x \(shape.columns): adapter and base do not belong together"
                    )
                }
                guard pieces[tensor.map]?[tensor.role] == nil else {
                    throw Failure(.badData, "the adapter has two tensors \(tensor.role) for \(tensor.map)")
                }
                let place = layout.offsets[index]
                pieces[tensor.map, default: [:]][tensor.role] = Piece(
                    tensor: tensor, pointer: base + start + place, gradient: number == 0 ? place : nil, place: place)
            }
            start += layout.parameterCount
        }
        var maps: [[AdaptedMap]] = []
        var summed: [Summed] = []
        var width = 0
        var lowest = model.blocks.count
        for (number, layer) in model.blocks.enumerated() {
            var offset = 0
            var own: [AdaptedMap] = []
            for (place, weight) in layer.weights.enumerated() {
                let name = model.linearMaps[number * layer.weights.count + place].name
                let found = pieces[name] ?? [:]
                var branches: [Branch] = []
                for (roleA, roleB, roleCore) in [
                    (AdapterRole.loraA, AdapterRole.loraB, AdapterRole.core as AdapterRole?), (.stackA, .stackB, nil),
                ] {
                    let core = roleCore.flatMap { found[$0] }
                    guard found[roleA] != nil || found[roleB] != nil || core != nil else { continue }
                    guard let a = found[roleA], let b = found[roleB] else {
                        throw Failure(
                            .badData, "the adapter of \(name) lacks \(found[roleA] == nil ? "A" : "B"); both are needed")
                    }
                    let ranks = [a, b, core].compactMap { $0?.tensor.rank }
                    let scales = [a, b, core].compactMap { $0?.tensor.scale }
                    guard ranks.allSatisfy({ $0 == ranks[0] }), scales.allSatisfy({ $0 == scales[0] }) else {
                        throw Failure(.badData, "the adapter's tensors of \(name) disagree: ranks \(ranks), scales \(scales)")
                    }
                    let branch = Branch(
                        rank: ranks[0], scale: scales[0], a: a.pointer, b: b.pointer, core: core?.pointer, gradientA: a.gradient,
                        gradientB: b.gradient, gradientCore: core?.gradient, offset: offset)
                    if roleA == .stackA,
                        branch.rank
                            > Self.largestBranchRank(outputs: weight.rows, inputs: weight.columns, as: model.compute)
                    {
                        summed.append(
                            Summed(
                                layer: number, place: place, weight: weight, rank: branch.rank, scale: branch.scale, a: a.place,
                                b: b.place))
                        continue
                    }
                    offset += branch.width
                    if branch.isTrained { lowest = min(lowest, number) }
                    branches.append(branch)
                }
                own.append(AdaptedMap(name: name, weight: weight, bias: layer.biases[place], branches: branches))
            }
            width = max(width, offset)
            maps.append(own)
        }
        self.maps = maps
        self.summed = summed
        projectionWidth = width
        lowestTrainedLayer = lowest
        trainsOutputA = maps.contains { layer in
            layer[attentionOutputPlace].branches.contains { $0.gradientA != nil }
        }
        var own = ownHead.reserve(max(1, model.headMaps.reduce(0) { $0 + $1.outputs * ($1.inputs + 1) }))
        var head: [HeadMap] = []
        for map in model.headMaps {
            let found = pieces[map.name] ?? [:]
            if let weight = found[.headWeight], let bias = found[.headBias] {
                head.append(
                    HeadMap(
                        outputs: map.outputs, inputs: map.inputs, weight: weight.pointer, bias: bias.pointer,
                        gradientWeight: weight.gradient, gradientBias: bias.gradient))
                continue
            }
            guard found.isEmpty, !pieces.values.contains(where: { $0[.headWeight] != nil }), let stored = model.ownHead[map.name]
            else {
                throw Failure(
                    .badData,
                    "the adapter has no weight and bias of the head \(map.name), and the checkpoint has none for as many labels: train the adapter with --task classify"
                )
            }
            own.update(from: stored.weight, count: stored.weight.count)
            let bias = own + stored.weight.count
            bias.update(from: stored.bias, count: stored.bias.count)
            head.append(
                HeadMap(
                    outputs: map.outputs, inputs: map.inputs, weight: own, bias: bias, gradientWeight: nil, gradientBias: nil))
            own = bias + stored.bias.count
        }
        self.head = head
        update(weights)
    }

    /// Whether these weights have the layouts that this binding was made for.
    func accepts(_ weights: AdapterWeights) -> Bool {
        weights.layouts == layouts
    }

    var trainedLayout: AdapterLayout { layouts[0]! }

    /// The present values; the trained ones come first.
    var weights: AdapterWeights {
        var start = 0
        let states = layouts.prefix(correction == nil ? 3 : 2).map { layout in
            layout.map { layout in
                defer { start += layout.parameterCount }
                return AdapterState(
                    layout: layout,
                    values: Array(UnsafeBufferPointer(start: values.pointer + start, count: layout.parameterCount)))
            }
        }
        return AdapterWeights(trained: states[0]!, frozen: states[1], correction: correction ?? states.last!)
    }

    func withTrainedValues(_ body: (UnsafeMutableBufferPointer<Float>) -> Void) {
        body(UnsafeMutableBufferPointer(start: values.pointer, count: trainedLayout.parameterCount))
    }

    /// Copies the values; sums the correction, which stays the same for a round, only if it is another.
    func update(_ weights: AdapterWeights) {
        var start = 0
        func copy(_ state: AdapterState) {
            state.values.withUnsafeBufferPointer {
                guard let source = $0.baseAddress else { return }
                (values.pointer + start).update(from: source, count: $0.count)
            }
            start += state.values.count
        }
        copy(weights.trained)
        if let frozen = weights.frozen { copy(frozen) }
        guard let new = weights.correction else { return }
        if summed.isEmpty { return copy(new) }
        guard new != correction else { return }
        correction = new
        // What no branch reads is not copied.
        if 2 * summed.count < new.layout.tensors.count { copy(new) }
        for item in summed {
            let map = maps[item.layer][item.place]
            maps[item.layer][item.place] = AdaptedMap(
                name: map.name, weight: sum(item, new), bias: map.bias, branches: map.branches)
        }
    }

    /// The largest rank of a correction that runs as a branch. Above it the sum takes at most twice the branch's memory, and much
    /// less time: the correction is added to its matrix.
    static func largestBranchRank(outputs: Int, inputs: Int, as type: ComputeType) -> Int {
        (QuantizedMatrix.sumByteCount(rows: outputs, columns: inputs, as: type) - 1) / (2 * 4 * (outputs + inputs))
    }

    /// W + s B A.
    private func sum(_ item: Summed, _ correction: AdapterState) -> QuantizedMatrix {
        let (columns, rank) = (item.weight.columns, item.rank)
        return correction.values.withUnsafeBufferPointer { values in
            nonisolated(unsafe) let base = values.baseAddress!
            return item.weight.adding(as: compute) { range, target in
                gemm(
                    m: range.count, n: columns, k: rank, alpha: item.scale, base + item.b + range.lowerBound * rank, lda: rank,
                    base + item.a,
                    ldb: columns, beta: 1, target, ldc: columns)
            }
        }
    }
}

extension AdapterWeights {
    /// Of what is trained, frozen, and the correction.
    fileprivate var layouts: [AdapterLayout?] { [trained.layout, frozen?.layout, correction?.layout] }
}
