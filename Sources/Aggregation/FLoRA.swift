/// FLoRA: the clients' factors, of mixed ranks, are stacked into a correction beside the base (Wang et al. 2024,
/// arXiv:2409.05976). Exact.
///
/// We deviate in two ways: weights follow the round's participants and not a fixed list, and the correction is never
/// merged into the base, so that a quantized base stays as it is. `GlobalCorrection` keeps the rounds' stacks. A task's head,
/// which has no factors, is averaged as in every strategy.

import Adapters
import Plan

extension StrategyRule {
    public static let flora = StrategyRule(
        name: .flora,
        contributionLayout: { $0.trainedLayout },
        takesFactors: true,
        aggregator: { StackedFactors(maps: $0.maps, head: $0.global?.layout, totalWeight: $0.totalWeight) })
}
