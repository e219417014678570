/// What a client uploads for a round, by strategy: both sides need to know.

/// What one client's contribution holds.
public enum ContributionForm: String, Codable, Sendable, CaseIterable {
    /// The trained adapter minus the one that was given.
    case update
    /// The trained factors themselves, because sums of products need each factor.
    case factors
}

extension StrategyName {
    public var contribution: ContributionForm {
        switch self {
        case .fedit, .ffaLoRA, .fedSB: .update
        case .flora: .factors
        }
    }
}

extension Weighting {
    /// The weight of a client with this many usable training examples; 0, which excludes it, where it has none.
    public func weight(examples: Int) -> Double {
        switch self {
        case .samples: Double(max(0, examples))
        case .uniform: examples > 0 ? 1 : 0
        }
    }
}
