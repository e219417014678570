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

/// The adapter's values in one block of memory, and for each layer its maps with pointers into that block.
final class AdapterBinding {
    private let values = FloatBuffer()
    private let layouts: [AdapterLayout?]
    /// `[layer][place]`.
    let maps: [[AdaptedMap]]
    /// Floats a token of the widest layer's branches.
    let projectionWidth: Int
    /// The lowest layer with a trained branch; the number of layers if there is none.
    let lowestTrainedLayer: Int
    /// Whether some layer trains an A that reads what attention wrote.
    let trainsOutputA: Bool

    /// - Throws: `Failure` if a tensor belongs to no linear map of the model, has a shape that does not fit it, or lacks
    ///   its counterpart
    init(_ weights: AdapterWeights, model: LanguageModel) throws(Failure) {
        let states = [weights.trained, weights.frozen, weights.correction]
        layouts = states.map { $0?.layout }
        let base = values.reserve(max(1, states.reduce(0) { $0 + ($1?.values.count ?? 0) }))
        struct Piece {
            let tensor: AdapterTensor
            let pointer: UnsafePointer<Float>
            let gradient: Int?
        }
        let known = Dictionary(uniqueKeysWithValues: model.linearMaps.map { ($0.name, $0) })
        var pieces: [String: [AdapterRole: Piece]] = [:]
        var start = 0
        for (number, state) in states.enumerated() {
            guard let state else { continue }
            for (index, tensor) in state.layout.tensors.enumerated() {
                guard !tensor.role.isHead else {
                    throw Failure(
                        .badData,
                        "the adapter has a head \(tensor.map), but this model predicts tokens: adapter and base do not belong together"
                    )
                }
                guard let map = known[tensor.map] else {
                    throw Failure(
                        .badData,
                        "the adapter has a tensor for \(tensor.map), which is no linear map of this model: adapter and base do not belong together"
                    )
                }
                let shape: (rows: Int, columns: Int) =
                    switch tensor.role {
                    case .loraA, .stackA: (tensor.rank, map.inputs)
                    case .loraB, .stackB: (map.outputs, tensor.rank)
                    case .core: (tensor.rank, tensor.rank)
                    case .headWeight, .headBias: (0, 0)
                    }
                guard tensor.rank > 0, tensor.rows == shape.rows, tensor.columns == shape.columns else {
                    throw Failure(
                        .badData,
                        "the adapter's tensor \(tensor.role) of \(tensor.map) is \(tensor.rows) x \(tensor.columns) with rank \(tensor.rank), but a \(map.outputs) x \(map.inputs) matrix needs \(shape.rows) x \(shape.columns): adapter and base do not belong together"
                    )
                }
                guard pieces[tensor.map]?[tensor.role] == nil else {
                    throw Failure(.badData, "the adapter has two tensors \(tensor.role) for \(tensor.map)")
                }
                pieces[tensor.map, default: [:]][tensor.role] = Piece(
                    tensor: tensor, pointer: base + start + state.layout.offsets[index],
                    gradient: number == 0 ? state.layout.offsets[index] : nil)
            }
            start += state.values.count
        }
        var maps: [[AdaptedMap]] = []
        var width = 0
        var lowest = model.layers.count
        for (number, layer) in model.layers.enumerated() {
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
        projectionWidth = width
        lowestTrainedLayer = lowest
        trainsOutputA = maps.contains { layer in
            layer[LanguageModel.Place.output.rawValue].branches.contains { $0.gradientA != nil }
        }
        update(weights)
    }

    /// Whether these weights have the layouts that this binding was made for.
    func accepts(_ weights: AdapterWeights) -> Bool {
        [weights.trained.layout, weights.frozen?.layout, weights.correction?.layout] == layouts
    }

    var trainedLayout: AdapterLayout { layouts[0]! }

    /// The present values; the trained ones come first.
    var weights: AdapterWeights {
        var start = 0
        let states = layouts.map { layout in
            layout.map { layout in
                defer { start += layout.parameterCount }
                return AdapterState(
                    layout: layout,
                    values: Array(UnsafeBufferPointer(start: values.pointer + start, count: layout.parameterCount)))
            }
        }
        return AdapterWeights(trained: states[0]!, frozen: states[1], correction: states[2])
    }

    func withTrainedValues(_ body: (UnsafeMutableBufferPointer<Float>) -> Void) {
        body(UnsafeMutableBufferPointer(start: values.pointer, count: trainedLayout.parameterCount))
    }

    /// Copies the values.
    func update(_ weights: AdapterWeights) {
        var start = 0
        for state in [weights.trained, weights.frozen, weights.correction].compactMap({ $0 }) {
            state.values.withUnsafeBufferPointer {
                guard let source = $0.baseAddress else { return }
                (values.pointer + start).update(from: source, count: $0.count)
            }
            start += state.values.count
        }
    }
}
