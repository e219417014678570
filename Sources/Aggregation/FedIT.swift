/// FedIT: A and B are averaged, each on its own (Zhang et al. 2023, arXiv:2305.05644).
///
/// The product of the averages is not the average of the products: the difference is the covariance
/// sum_k p_k (B_k - mean B)(A_k - mean A), zero where all A or all B are equal. Weights fall on each factor once.

import Adapters
import Plan

extension StrategyRule {
    public static let fedIT = StrategyRule(
        name: .fedit,
        contributionLayout: { $0.trainedLayout },
        aggregator: { averagingUpdates($0) })
}
