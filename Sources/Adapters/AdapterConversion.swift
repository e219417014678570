/// Between the adapter that trains and the adapter that is stored: what is exported, and how a run starts from a file.

import Checkpoints
import Primitives

/// The factors of one linear map as ordinary LoRA.
public typealias ExportedFactor = PEFTAdapter.Entry

/// Everything that `weights` add to the base, as ordinary LoRA factors in the layout's order.
///
/// LoRA and FFA-LoRA keep A, B and their scale. LoRA-SB becomes lora_B = B R, lora_A = A, scale 1. A FLoRA correction
/// becomes stackB and stackA, scale 1; where a trained adapter stands beside it, its factors are stacked under it with
/// their scale folded into B, unless its B is zero (the start of a round) and there is nothing to add.
public func exportedFactors(weights: AdapterWeights) -> [ExportedFactor] {
    let states = [weights.trained] + (weights.frozen.map { [$0] } ?? [])
    func find(_ map: String, _ role: AdapterRole) -> (tensor: AdapterTensor, values: [Float])? {
        for state in states {
            if let index = state.layout.index(map: map, role: role) {
                return (state.layout.tensors[index], Array(state.tensor(index)))
            }
        }
        return nil
    }
    var trained: [ExportedFactor] = []
    for map in mapNames(weights.trained.layout) {
        guard let a = find(map, .loraA), let b = find(map, .loraB) else {
            preconditionFailure("the adapter holds no A and B of \(map)")
        }
        let rank = a.tensor.rows
        var left = b.values
        if let core = find(map, .core) { left = product(b.values, core.values, rows: b.tensor.rows, inner: rank, columns: rank) }
        trained.append(
            ExportedFactor(
                map: map, a: a.values, b: left, rank: rank, scale: b.tensor.scale, outputs: b.tensor.rows,
                inputs: a.tensor.columns))
    }
    guard let correction = weights.correction else { return trained }
    let branches = stackedFactors(correction).map(withinMatrix)
    if trained.allSatisfy({ $0.b.allSatisfy { $0 == 0 } }) { return branches }
    var extra = Dictionary(uniqueKeysWithValues: trained.map { ($0.map, $0) })
    var all = branches.map { branch in
        extra.removeValue(forKey: branch.map).map { stacked([branch, $0]) } ?? branch
    }
    for factor in trained where extra[factor.map] != nil { all.append(factor) }
    return all
}

/// The head that `weights` hold, in the layout's order; empty without one.
public func exportedHead(weights: AdapterWeights) -> [PEFTAdapter.HeadEntry] {
    let layout = weights.trained.layout
    return layout.tensors.indices.filter { layout.tensors[$0].role == .headWeight }.map { index in
        let map = layout.tensors[index].map
        guard let bias = layout.index(map: map, role: .headBias) else {
            preconditionFailure("the head \(map) has no bias")
        }
        return PEFTAdapter.HeadEntry(
            map: map, weight: Array(weights.trained.tensor(index)), bias: Array(weights.trained.tensor(bias)))
    }
}

/// A FLoRA correction as LoRA factors of scale 1.
public func stackedFactors(_ correction: AdapterState) -> [ExportedFactor] {
    let layout = correction.layout
    return mapNames(layout).map { map in
        guard let a = layout.index(map: map, role: .stackA), let b = layout.index(map: map, role: .stackB) else {
            preconditionFailure("the correction holds no stack of \(map)")
        }
        return ExportedFactor(
            map: map, a: Array(correction.tensor(a)), b: Array(correction.tensor(b)), rank: layout.tensors[a].rows, scale: 1,
            outputs: layout.tensors[b].rows, inputs: layout.tensors[a].columns)
    }
}

extension PEFTAdapter {
    /// The factors as trainable LoRA weights, each with its own rank and scale, and the head: to evaluate, generate and merge.
    ///
    /// - Throws: `Failure` if the adapter belongs to another base.
    public func weights(maps: [LinearMap]) throws(Failure) -> AdapterWeights {
        let entries = try entries(for: maps)
        let layout = AdapterLayout(
            entries.flatMap {
                [
                    AdapterTensor(map: $0.map, role: .loraA, rows: $0.rank, columns: $0.inputs, rank: $0.rank, scale: $0.scale),
                    AdapterTensor(map: $0.map, role: .loraB, rows: $0.outputs, columns: $0.rank, rank: $0.rank, scale: $0.scale),
                ]
            } + headTensors)
        return AdapterWeights(
            trained: AdapterState(
                layout: layout, values: entries.flatMap { $0.a + $0.b } + head.flatMap { $0.weight + $0.bias }))
    }

    private var headTensors: [AdapterTensor] {
        head.flatMap {
            [
                AdapterTensor(map: $0.map, role: .headWeight, rows: $0.outputs, columns: $0.inputs, rank: 0, scale: 1),
                AdapterTensor(map: $0.map, role: .headBias, rows: $0.outputs, columns: 1, rank: 0, scale: 1),
            ]
        }
    }

    /// Puts the adapter's head in the place of that of `weights`, where both have one.
    ///
    /// - Throws: `Failure` if it is a head for other labels or of another base
    public func setHead(of weights: inout AdapterWeights) throws(Failure) {
        let layout = weights.trained.layout
        guard !head.isEmpty, layout.tensors.contains(where: \.role.isHead) else { return }
        for (tensor, values) in zip(headTensors, head.flatMap { [$0.weight, $0.bias] }) {
            guard let index = layout.index(map: tensor.map, role: tensor.role), layout.tensors[index] == tensor else {
                throw Failure(
                    .badData,
                    "\(origin) has a head \(tensor.map) of \(tensor.rows) x \(tensor.columns), which is not this run's: its labels or its base are others"
                )
            }
            weights.trained.values.replaceSubrange(layout.range(index), with: values)
        }
    }

    /// The weights from which training under `specification` starts, so that the model computes what this adapter does.
    ///
    /// B is rescaled where the scales differ. A smaller rank is filled up, and maps that the adapter lacks are started,
    /// from `start` (rows of A, with columns of zeros in B). So is a head that it lacks.
    /// - Throws: `Failure` if the adapter belongs to another base, adapts what the specification does not, has a
    ///   larger rank, or the method is LoRA-SB.
    public func weights(
        _ specification: AdapterSpecification, maps: [LinearMap], start: AdapterWeights
    ) throws(Failure) -> AdapterWeights {
        guard specification.method != .loraSB else {
            throw Failure(
                .usage, "\(origin) cannot start lora-sb, whose frozen factors come from its own start; leave --init-adapter out")
        }
        let targets = Set(specification.maps.map(\.name))
        var weights = start
        try setHead(of: &weights)
        for entry in try entries(for: maps) {
            guard targets.contains(entry.map) else {
                throw Failure(.usage, "\(origin) adapts \(entry.map), which --target-modules leaves out: add it")
            }
            guard entry.rank <= specification.rank else {
                throw Failure(
                    .usage,
                    "\(origin) has rank \(entry.rank) at \(entry.map), above the rank \(specification.rank) of this training: use a rank of at least \(entry.rank)"
                )
            }
            let factor = entry.scale / specification.scale
            func set(_ state: inout AdapterState, _ role: AdapterRole, _ fill: (inout [Float], Int) -> Void) -> Bool {
                guard let index = state.layout.index(map: entry.map, role: role) else { return false }
                fill(&state.values, state.layout.offsets[index])
                return true
            }
            let fillA = { (values: inout [Float], offset: Int) in
                for (index, value) in entry.a.enumerated() { values[offset + index] = value }
            }
            if !set(&weights.trained, .loraA, fillA), var frozen = weights.frozen {
                _ = set(&frozen, .loraA, fillA)
                weights.frozen = frozen
            }
            _ = set(&weights.trained, .loraB) { values, offset in
                for row in 0..<entry.outputs {
                    for column in 0..<specification.rank {
                        values[offset + row * specification.rank + column] =
                            column < entry.rank ? entry.b[row * entry.rank + column] * factor : 0
                    }
                }
            }
        }
        return weights
    }

    /// The adapter as FLoRA's global correction over `targets`: scales folded into B, one rank for all maps or a map's
    /// smaller side if that is below it, as `AdapterSpecification.stackLayout` has it, zero for maps that the adapter lacks.
    ///
    /// - Throws: `Failure` if the adapter belongs to another base or adapts what is not among the targets.
    public func stack(targets: [LinearMap], maps: [LinearMap]) throws(Failure) -> AdapterState {
        let entries = try entries(for: maps)
        let byName = Dictionary(uniqueKeysWithValues: entries.map { ($0.map, $0) })
        let targetNames = Set(targets.map(\.name))
        for entry in entries where !targetNames.contains(entry.map) {
            throw Failure(.usage, "\(origin) adapts \(entry.map), which --target-modules leaves out: add it")
        }
        let rank = entries.reduce(1) { max($0, $1.rank) }
        return stackState(
            targets.map { map in
                let entry =
                    byName[map.name]
                    ?? Entry(
                        map: map.name, a: [Float](repeating: 0, count: rank * map.inputs),
                        b: [Float](repeating: 0, count: map.outputs * rank), rank: rank, scale: 1, outputs: map.outputs,
                        inputs: map.inputs)
                let fitting = withinMatrix(entry)
                let rank = min(rank, map.outputs, map.inputs)
                let padded = fitting.padded(to: rank, foldingScale: true)
                return Entry(
                    map: map.name, a: padded.a, b: padded.b, rank: rank, scale: 1, outputs: map.outputs, inputs: map.inputs)
            })
    }
}

/// Adapted maps of a layout, each once, in order.
private func mapNames(_ layout: AdapterLayout) -> [String] {
    var names: [String] = []
    for tensor in layout.tensors where !tensor.role.isHead && names.last != tensor.map { names.append(tensor.map) }
    return names
}

private func stackState(_ factors: [ExportedFactor]) -> AdapterState {
    let layout = AdapterLayout(
        factors.flatMap {
            [
                AdapterTensor(map: $0.map, role: .stackA, rows: $0.rank, columns: $0.inputs, rank: $0.rank, scale: 1),
                AdapterTensor(map: $0.map, role: .stackB, rows: $0.outputs, columns: $0.rank, rank: $0.rank, scale: 1),
            ]
        })
    return AdapterState(layout: layout, values: factors.flatMap { $0.a + $0.b })
}

/// The same product with a rank of at most the matrix's smaller side: an adapter file has one rank for all maps, and
/// may fill up those of a smaller matrix.
private func withinMatrix(_ factor: ExportedFactor) -> ExportedFactor {
    let side = min(factor.outputs, factor.inputs)
    guard factor.rank > side else { return factor }
    let dense = product(factor.b, factor.a, rows: factor.outputs, inner: factor.rank, columns: factor.inputs)
    let identity = (0..<side * side).map { Float($0 / side == $0 % side ? 1 : 0) }
    let isTall = factor.outputs > factor.inputs
    return ExportedFactor(
        map: factor.map, a: isTall ? identity : dense, b: isTall ? dense : identity, rank: side, scale: factor.scale,
        outputs: factor.outputs, inputs: factor.inputs)
}

/// One factor pair whose product is the sum of the pairs' scaled products.
private func stacked(_ factors: [ExportedFactor]) -> ExportedFactor {
    let first = factors[0]
    let rank = factors.reduce(0) { $0 + $1.rank }
    var b = [Float](repeating: 0, count: first.outputs * rank)
    var offset = 0
    for factor in factors {
        for row in 0..<first.outputs {
            for column in 0..<factor.rank {
                b[row * rank + offset + column] = factor.b[row * factor.rank + column] * factor.scale
            }
        }
        offset += factor.rank
    }
    return ExportedFactor(
        map: first.map, a: factors.flatMap(\.a), b: b, rank: rank, scale: 1, outputs: first.outputs, inputs: first.inputs)
}

/// left [rows, inner] times right [inner, columns], summed in double.
private func product(_ left: [Float], _ right: [Float], rows: Int, inner: Int, columns: Int) -> [Float] {
    var result: [Float] = []
    result.reserveCapacity(rows * columns)
    var sums = [Double](repeating: 0, count: columns)
    for row in 0..<rows {
        for column in 0..<columns { sums[column] = 0 }
        right.withUnsafeBufferPointer { right in
            sums.withUnsafeMutableBufferPointer { sums in
                for index in 0..<inner {
                    let factor = Double(left[row * inner + index])
                    let start = index * columns
                    for column in 0..<columns { sums[column] += factor * Double(right[start + column]) }
                }
            }
        }
        result += sums.lazy.map { Float($0) }
    }
    return result
}
