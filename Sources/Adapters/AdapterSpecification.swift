/// Which linear maps are adapted, how, and at what rank: enough to derive every layout and every start.

import Checkpoints
import Primitives

/// What is trained on each adapted linear map.
public enum AdapterMethod: String, Codable, Sendable, CaseIterable {
    /// W + s B A, both trained (Hu et al. 2021, arXiv:2106.09685).
    case lora
    /// W + s B A with A frozen (Sun et al. 2024, arXiv:2403.12313).
    case ffaLoRA = "ffa-lora"
    /// W + B R A with B and A frozen and orthonormal (Ponkshe et al. 2024, arXiv:2411.19557).
    case loraSB = "lora-sb"
}

public struct AdapterSpecification: Equatable, Sendable {
    public let method: AdapterMethod
    /// In model order.
    public let maps: [LinearMap]
    public let rank: Int
    /// s: alpha / rank, or alpha / sqrt(rank) when rank-stabilized (Kalajdzievski 2023, arXiv:2312.03732); 1 for LoRA-SB.
    public let scale: Float
    /// The linear maps of the task's head, each with a bias, which every method trains whole: `classifier`, or RoBERTa's
    /// `classifier.dense` and `classifier.out_proj`. Empty for a causal language model.
    public let head: [LinearMap]

    /// - Throws: `Failure` if there is nothing to adapt, or the rank is below 1 or above a matrix.
    public init(
        method: AdapterMethod, maps: [LinearMap], rank: Int, alpha: Double, rankStabilized: Bool, head: [LinearMap] = []
    ) throws(Failure) {
        guard !maps.isEmpty else {
            throw Failure(
                .usage, "no linear map of the model matches --target-modules; use all-linear or names such as q_proj,v_proj")
        }
        guard rank >= 1 else {
            throw Failure(.usage, "rank \(rank) is not possible: a rank is at least 1")
        }
        for map in maps where rank > min(map.outputs, map.inputs) {
            throw Failure(
                .usage,
                "rank \(rank) is above \(map.name), a \(map.outputs) x \(map.inputs) matrix: use a rank of at most \(min(map.outputs, map.inputs)), or leave \(map.moduleName) out of --target-modules"
            )
        }
        // Such that every scale, and what one scale is over another, is an ordinary Float.
        guard (1e-9...1e9).contains(alpha) else {
            throw Failure(.usage, "alpha \(alpha) is not possible: alpha is a positive number, from 1e-9 to 1e9")
        }
        self.method = method
        self.maps = maps
        self.rank = rank
        self.head = head
        scale =
            method == .loraSB ? 1 : Float(rankStabilized ? alpha / Double(rank).squareRoot() : alpha / Double(rank))
    }

    private func a(_ map: LinearMap) -> AdapterTensor {
        AdapterTensor(map: map.name, role: .loraA, rows: rank, columns: map.inputs, rank: rank, scale: scale)
    }
    private func b(_ map: LinearMap) -> AdapterTensor {
        AdapterTensor(map: map.name, role: .loraB, rows: map.outputs, columns: rank, rank: rank, scale: scale)
    }
    private func core(_ map: LinearMap) -> AdapterTensor {
        AdapterTensor(map: map.name, role: .core, rows: rank, columns: rank, rank: rank, scale: scale)
    }

    /// Weight, then bias, of each map of the head.
    public var headTensors: [AdapterTensor] {
        head.flatMap {
            [
                AdapterTensor(map: $0.name, role: .headWeight, rows: $0.outputs, columns: $0.inputs, rank: 0, scale: 1),
                AdapterTensor(map: $0.name, role: .headBias, rows: $0.outputs, columns: 1, rank: 0, scale: 1),
            ]
        }
    }

    /// The head alone; nil without one.
    public var headLayout: AdapterLayout? { head.isEmpty ? nil : AdapterLayout(headTensors) }

    /// LoRA: A then B of each map; FFA-LoRA: B; LoRA-SB: R. Then the head.
    public var trainedLayout: AdapterLayout {
        let factors =
            switch method {
            case .lora: maps.flatMap { [a($0), b($0)] }
            case .ffaLoRA: maps.map(b)
            case .loraSB: maps.map(core)
            }
        return AdapterLayout(factors + headTensors)
    }

    /// FFA-LoRA: A of each map; LoRA-SB: B then A; LoRA: none.
    public var frozenLayout: AdapterLayout? {
        switch method {
        case .lora: nil
        case .ffaLoRA: AdapterLayout(maps.map(a))
        case .loraSB: AdapterLayout(maps.flatMap { [b($0), a($0)] })
        }
    }

    /// A start that one client makes, in one upload: A and B of each map, or LoRA-SB's B, A and R.
    public var startLayout: AdapterLayout {
        AdapterLayout(maps.flatMap { method == .loraSB ? [b($0), a($0), core($0)] : [a($0), b($0)] })
    }

    /// The weights of a client that begins with a start; what the start lacks, such as a head, is as `initial` has it.
    public func weights(ofStart start: AdapterState, initial: AdapterWeights) -> AdapterWeights {
        precondition(start.layout == startLayout, "the start belongs to another specification")
        func fill(_ state: AdapterState) -> AdapterState {
            var state = state
            for (index, tensor) in state.layout.tensors.enumerated() {
                guard let source = start.layout.index(map: tensor.map, role: tensor.role) else { continue }
                state.values.replaceSubrange(state.layout.range(index), with: start.tensor(source))
            }
            return state
        }
        var weights = initial
        weights.trained = fill(initial.trained)
        weights.frozen = initial.frozen.map(fill)
        return weights
    }

    /// A from U(-1/sqrt(inputs), 1/sqrt(inputs)) as PEFT draws it (Kaiming-uniform with a = sqrt 5), B and R zero; a head's
    /// weights the same way, its biases zero.
    ///
    /// Only integers and correctly rounded arithmetic, so that two machines agree bit for bit. LoRA-SB's frozen
    /// factors come from data or from the base, so that only its layouts are filled here, with zeros.
    public func initialWeights(_ generator: inout SeededGenerator) -> AdapterWeights {
        AdapterWeights(
            trained: filled(trainedLayout, &generator), frozen: frozenLayout.map { filled($0, &generator) })
    }

    /// The head's part of `initialWeights`, drawn on its own; nil without a head.
    public func initialHead(_ generator: inout SeededGenerator) -> AdapterState? {
        headLayout.map { filled($0, &generator) }
    }

    private func filled(_ layout: AdapterLayout, _ generator: inout SeededGenerator) -> AdapterState {
        var state = AdapterState(zeros: layout)
        for (index, tensor) in layout.tensors.enumerated() {
            guard tensor.role == .headWeight || (tensor.role == .loraA && method != .loraSB) else { continue }
            let bound = 1 / Float(tensor.columns).squareRoot()
            for position in layout.range(index) { state.values[position] = generator.symmetric(bound) }
        }
        return state
    }

    /// The layout of a FLoRA correction: stackA then stackB of each map, of this rank or the matrix's smaller side.
    public static func stackLayout(maps: [LinearMap], rank: Int) -> AdapterLayout {
        AdapterLayout(
            maps.flatMap { map -> [AdapterTensor] in
                let rank = min(rank, map.outputs, map.inputs)
                return [
                    AdapterTensor(map: map.name, role: .stackA, rows: rank, columns: map.inputs, rank: rank, scale: 1),
                    AdapterTensor(map: map.name, role: .stackB, rows: map.outputs, columns: rank, rank: rank, scale: 1),
                ]
            })
    }
}
