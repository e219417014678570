/// What a lossy codec left out of an update is added to the next one (Seide et al. 2014, section 3; Karimireddy et al. 2019,
/// "Error Feedback Fixes SignSGD", algorithm 2).

import Adapters

/// Pure arithmetic on states of one layout; who keeps the residual, and when it is dropped, is the client's affair.
public enum ErrorFeedback {
    /// What is to be encoded: update + decay^skippedRounds x residual.
    ///
    /// A residual ages in the rounds that a client does not take part in: it belongs to a global state that has moved on
    /// (Li and Li 2022, "Analysis of Error Feedback in Federated Non-Convex Optimization with Biased Compression", section 4.3).
    /// - Parameter residual: nil where there is none: the update itself.
    public static func corrected(
        _ update: AdapterState, residual: AdapterState?, decay: Double = 1, skippedRounds: Int = 0
    ) -> AdapterState {
        guard let residual else { return update }
        precondition(update.layout == residual.layout, "update and residual have two layouts")
        precondition(decay >= 0 && decay <= 1 && skippedRounds >= 0, "decay \(decay), \(skippedRounds) rounds skipped")
        var factor = 1.0
        // Repeated multiplication is the same on every machine, which the library's power function is not.
        for _ in 0..<skippedRounds where factor > 0 { factor *= decay }
        let share = Float(factor)
        return AdapterState(layout: update.layout, values: zip(update.values, residual.values).map { $0 + share * $1 })
    }

    /// What is left for the next round: what should have been sent less what the receiver decodes.
    public static func residual(corrected: AdapterState, decoded: AdapterState) -> AdapterState {
        corrected.update(since: decoded)
    }
}
