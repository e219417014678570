/// How contributions become one state: one after another, so that memory holds one aggregate and one contribution.

import Adapters
import Primitives

public protocol Aggregator: Sendable {
    /// Counts one contribution. Clients come in ascending order of names, compared as bytes.
    ///
    /// - Parameter weight: relative to the other clients of the round; 0 checks the contribution but excludes it.
    /// - Throws: `AggregationError`; the aggregate is then as before, and the next client can be added.
    mutating func add(client: String, weight: Double, state: AdapterState) throws(AggregationError)

    /// The combined state. The aggregator is used up.
    mutating func finish() throws(AggregationError) -> AdapterState
}

/// What every strategy checks of every contribution.
struct Admission: Sendable {
    private(set) var lastClient: String?
    private(set) var totalWeight = 0.0

    /// Checks name, order and weight.
    func check(client: String, weight: Double) throws(AggregationError) {
        if let lastClient {
            if client.utf8.elementsEqual(lastClient.utf8) { throw .duplicateClient(client) }
            guard lastClient.utf8.lexicographicallyPrecedes(client.utf8) else {
                throw .outOfOrder(client: client, after: lastClient)
            }
        }
        guard weight.isFinite, weight >= 0 else { throw .badWeight(client: client, weight: weight) }
    }

    /// Records a contribution that passed every check.
    mutating func admit(client: String, weight: Double) {
        lastClient = client
        totalWeight += weight
    }

    static func checkFinite(_ state: AdapterState, client: String) throws(AggregationError) {
        guard let position = state.values.firstIndex(where: { !$0.isFinite }) else { return }
        throw notFinite(position, in: state.layout, client: client)
    }

    static func notFinite(_ position: Int, in layout: AdapterLayout, client: String) -> AggregationError {
        let tensor = layout.offsets.lastIndex { $0 <= position } ?? 0
        return .notFinite(
            client: client, map: layout.tensors[tensor].map, role: layout.tensors[tensor].role,
            index: position - layout.offsets[tensor])
    }

    /// Compares layouts and names the first difference.
    static func checkLayout(
        _ found: AdapterLayout, expected: AdapterLayout, client: String
    ) throws(AggregationError) {
        if found == expected { return }
        for tensor in expected.tensors {
            guard let index = found.index(map: tensor.map, role: tensor.role) else {
                throw .missingTensor(client: client, map: tensor.map, role: tensor.role)
            }
            let other = found.tensors[index]
            guard other.rank == tensor.rank else {
                throw .wrongRank(
                    client: client, map: tensor.map, role: tensor.role, expected: tensor.rank, found: other.rank)
            }
            guard other.rows == tensor.rows, other.columns == tensor.columns else {
                throw .wrongShape(
                    client: client, map: tensor.map, role: tensor.role, expected: [tensor.rows, tensor.columns],
                    found: [other.rows, other.columns])
            }
            guard other.scale == tensor.scale else {
                throw .wrongScale(
                    client: client, map: tensor.map, role: tensor.role, expected: tensor.scale, found: other.scale)
            }
        }
        for tensor in found.tensors where expected.index(map: tensor.map, role: tensor.role) == nil {
            throw .unknownTensor(client: client, map: tensor.map, role: tensor.role)
        }
        throw .otherLayout(client: client, expected: expected.digest, found: found.digest)
    }
}
