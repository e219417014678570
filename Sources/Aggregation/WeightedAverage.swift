/// Federated averaging of updates: global + sum(w_k u_k) / sum(w_k) (McMahan et al. 2017, arXiv:1602.05629).
///
/// Sums run in double precision, in the order of names, and are rounded to single once, together with the addition
/// to the global state. For an update that is trained minus given, this equals the average of the trained states up to
/// that rounding.

import Adapters
import Primitives

public struct WeightedAverage: Aggregator {
    private let global: AdapterState
    private var sums: [Double]
    private var admission = Admission()

    /// - Parameter global: the state that the clients were given, to which their average update is added. Its layout is
    ///   the layout of every contribution.
    public init(onto global: AdapterState) {
        self.global = global
        sums = [Double](repeating: 0, count: global.values.count)
    }

    /// The average itself, of contributions of this layout.
    public init(layout: AdapterLayout) {
        self.init(onto: AdapterState(zeros: layout))
    }

    public mutating func add(client: String, weight: Double, state: AdapterState) throws(AggregationError) {
        try admission.check(client: client, weight: weight)
        try Admission.checkLayout(state.layout, expected: global.layout, client: client)
        try Admission.checkFinite(state, client: client)
        admission.admit(client: client, weight: weight)
        guard weight > 0 else { return }
        for index in sums.indices { sums[index] += weight * Double(state.values[index]) }
    }

    public mutating func finish() throws(AggregationError) -> AdapterState {
        let total = admission.totalWeight
        guard total > 0 else { throw .nothingToCombine }
        var result = global
        for index in sums.indices {
            let value = Float(Double(global.values[index]) + sums[index] / total)
            guard value.isFinite else { throw Admission.notFinite(index, in: global.layout, client: "") }
            result.values[index] = value
        }
        return result
    }
}
