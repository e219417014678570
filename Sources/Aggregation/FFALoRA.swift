/// FFA-LoRA: B is averaged; A is frozen, equal on all clients and never sent (Sun et al. 2024, arXiv:2403.12313).
///
/// Exact: mean(B) A = mean(B A).

import Adapters
import Plan

extension StrategyRule {
    public static let ffaLoRA = StrategyRule(
        name: .ffaLoRA,
        contributionLayout: { $0.trainedLayout },
        aggregator: { averagingUpdates($0) })
}
