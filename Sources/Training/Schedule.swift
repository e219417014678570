/// The learning rate at each step of the whole federation.

import Glibc
import Plan

public struct Schedule: Sendable, Equatable {
    public let name: ScheduleName
    public let peak: Double
    public let warmupSteps: Int
    public let totalSteps: Int

    public init(_ name: ScheduleName, peak: Double, warmupSteps: Int = 0, totalSteps: Int) {
        self.name = name
        self.peak = peak
        self.warmupSteps = warmupSteps
        self.totalSteps = totalSteps
    }

    /// The rate at `step`, counted from 0 over all rounds.
    ///
    /// Warm-up rises to the peak in `warmupSteps` equal steps, the first of which is not 0: no step is wasted. Then the
    /// rate stays, falls in a line, or falls along half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983); it
    /// would reach 0 one step after the last.
    public func rate(_ step: Int) -> Double {
        if step < warmupSteps { return peak * Double(step + 1) / Double(warmupSteps) }
        let progress = min(1, Double(step - warmupSteps) / Double(max(1, totalSteps - warmupSteps)))
        switch name {
        case .constant: return peak
        case .linear: return peak * (1 - progress)
        case .cosine: return peak * 0.5 * (1 + cos(Double.pi * progress))
        }
    }
}
