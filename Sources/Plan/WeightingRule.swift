/// How much a contribution weighs.

extension Weighting {
    /// The weight of a client with this many usable training examples; 0, which excludes it, where it has none.
    public func weight(examples: Int) -> Double {
        switch self {
        case .samples: Double(max(0, examples))
        case .uniform: examples > 0 ? 1 : 0
        }
    }
}
