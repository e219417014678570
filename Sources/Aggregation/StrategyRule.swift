/// The strategies as a table: what a contribution holds, and what combines contributions. A new strategy is one file
/// with its row, its name in `Plan`, and a line in `all`.

import Adapters
import Checkpoints
import Plan
import Primitives

/// What an aggregation of one round stands on.
public struct AggregationStart: Sendable {
    /// The state that the clients were given, to which their updates are added; where factors are combined the head, if there
    /// is one.
    public let global: AdapterState?
    /// The adapted linear maps, in model order.
    public let maps: [LinearMap]
    /// Sum of the weights of all contributions of the round.
    public let totalWeight: Double

    public init(global: AdapterState?, maps: [LinearMap], totalWeight: Double) {
        self.global = global
        self.maps = maps
        self.totalWeight = totalWeight
    }
}

public struct StrategyRule: Sendable {
    public let name: StrategyName
    /// What the clients train, and so the layout of what one client uploads at its rank.
    public let contributionLayout: @Sendable (AdapterSpecification) -> AdapterLayout
    /// Whether it combines the trained factors themselves instead of their change: they are then made again from what the
    /// client began with, which both sides derive from the seed, and the update that it sent.
    public var takesFactors = false
    /// The aggregator of one round.
    public let aggregator: @Sendable (AggregationStart) -> any Aggregator

    public static let all: [StrategyRule] = [.fedIT, .ffaLoRA, .flora, .fedSB]

    /// Averages updates onto the global state: what every strategy does that does not take factors.
    static func averagingUpdates(_ start: AggregationStart) -> any Aggregator {
        guard let global = start.global else { preconditionFailure("updates are averaged onto a global state") }
        return WeightedAverage(onto: global)
    }
}

extension StrategyName {
    public var rule: StrategyRule {
        guard let rule = StrategyRule.all.first(where: { $0.name == self }) else {
            preconditionFailure("strategy \(rawValue) has no row in StrategyRule.all")
        }
        return rule
    }
}
