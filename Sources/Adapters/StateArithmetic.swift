/// What both sides of a federation do with adapter states: differences, and stacks laid end to end.

import Checkpoints

extension AdapterState {
    /// The update of a client that was given `given` and trained this: the difference, value by value.
    ///
    /// Both must have the same layout.
    public func update(since given: AdapterState) -> AdapterState {
        precondition(layout == given.layout, "an update is the difference of two states of one layout")
        return AdapterState(layout: layout, values: zip(values, given.values).map { $0 - $1 })
    }

    /// The state that an update leads to: the sum, value by value, in single precision on both sides of a federation.
    ///
    /// Both must have the same layout.
    public func adding(_ update: AdapterState) -> AdapterState {
        precondition(layout == update.layout, "an update is added to a state of its own layout")
        return AdapterState(layout: layout, values: zip(values, update.values).map { $0 + $1 })
    }

    /// The same state with its last tensors, those of `part`, replaced: all of it, or its head.
    public mutating func replaceLast(with part: AdapterState) {
        precondition(
            layout.tensors.suffix(part.layout.tensors.count).elementsEqual(part.layout.tensors),
            "the part is not the end of the state")
        values.replaceSubrange((values.count - part.values.count)..., with: part.values)
    }

    /// The factors, and the head behind them, nil without one.
    public func splittingHead() -> (factors: AdapterState, head: AdapterState?) {
        guard let first = layout.tensors.firstIndex(where: \.role.isHead) else { return (self, nil) }
        let offset = layout.offsets[first]
        return (
            AdapterState(layout: AdapterLayout(Array(layout.tensors[..<first])), values: Array(values[..<offset])),
            AdapterState(layout: AdapterLayout(Array(layout.tensors[first...])), values: Array(values[offset...]))
        )
    }

    /// Several low-rank corrections as one, whose product is the sum of theirs: the rows of every stackA under one
    /// another and the columns of every stackB beside one another, in order.
    ///
    /// - Returns: nil if there is none, or if they do not stand for the same linear maps in the same order.
    public static func concatenated(stacks: [AdapterState]) -> AdapterState? {
        guard let first = stacks.first, let maps = first.layout.stackedMaps,
            stacks.allSatisfy({ $0.layout.stackedMaps == maps })
        else { return nil }
        if stacks.count == 1 { return first }
        let ranks = maps.indices.map { map in stacks.reduce(0) { $0 + $1.layout.tensors[2 * map].rank } }
        let layout = AdapterSpecification.stackLayout(maps: maps, ranks: ranks)
        var values: [Float] = []
        values.reserveCapacity(layout.parameterCount)
        for (index, map) in maps.enumerated() {
            for stack in stacks { values += stack.tensor(2 * index) }
            for row in 0..<map.outputs {
                for stack in stacks {
                    let columns = stack.layout.tensors[2 * index + 1].columns
                    let start = stack.layout.offsets[2 * index + 1] + row * columns
                    values += stack.values[start..<start + columns]
                }
            }
        }
        return AdapterState(layout: layout, values: values)
    }
}

extension AdapterLayout {
    /// The linear maps of a layout that is stackA then stackB of each map with scale 1, else nil.
    public var stackedMaps: [LinearMap]? {
        guard tensors.count % 2 == 0 else { return nil }
        var maps: [LinearMap] = []
        for index in stride(from: 0, to: tensors.count, by: 2) {
            let a = tensors[index]
            let b = tensors[index + 1]
            guard a.role == .stackA, b.role == .stackB, a.map == b.map, a.scale == 1, b.scale == 1, a.rank == b.rank,
                a.rows == a.rank, b.columns == b.rank
            else { return nil }
            maps.append(LinearMap(name: a.map, outputs: b.rows, inputs: a.columns))
        }
        return maps
    }
}

extension AdapterSpecification {
    /// The layout of a correction with a rank of its own for each map, which may exceed the matrix's smaller side.
    public static func stackLayout(maps: [LinearMap], ranks: [Int]) -> AdapterLayout {
        precondition(maps.count == ranks.count, "\(ranks.count) ranks for \(maps.count) maps")
        return AdapterLayout(
            zip(maps, ranks).flatMap { map, rank in
                [
                    AdapterTensor(map: map.name, role: .stackA, rows: rank, columns: map.inputs, rank: rank, scale: 1),
                    AdapterTensor(map: map.name, role: .stackB, rows: map.outputs, columns: rank, rank: rank, scale: 1),
                ]
            })
    }
}
