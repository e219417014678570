/// Fed-SB: LoRA-SB's R is averaged; B and A are frozen and equal on all clients (Singhal et al. 2025, arXiv:2502.15436).
///
/// Exact: B mean(R) A = mean(B R A). A contribution has rank x rank values for each map, whatever the map's size and
/// the number of clients. The paper's code averages uniformly; here the plan's weighting holds for every strategy.

import Adapters
import Plan

extension StrategyRule {
    public static let fedSB = StrategyRule(
        name: .fedSB,
        contributionLayout: { $0.trainedLayout },
        aggregator: { averagingUpdates($0) })
}
