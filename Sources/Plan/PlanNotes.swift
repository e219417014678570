/// What a plan will do that its author may not expect, for people, before the run.

import Checkpoints
import Primitives

extension FederationPlan {
    /// That `flora`'s rounds outgrow the rank cap, and what would keep its correction exact; nil if they do not.
    ///
    /// - Parameter maps: the base's
    /// - Throws: `Failure` if the plan's targets are not among them
    public func rankCapNote(maps: [LinearMap]) throws(Failure) -> String? {
        guard strategy == .flora, let side = try targets(among: maps).map({ min($0.outputs, $0.inputs) }).max() else {
            return nil
        }
        let clients = clientsPerRound == 0 ? minimumClients : clientsPerRound
        let round = (0..<clients).reduce(0) { $0 + ranks[$1 % ranks.count] }
        guard rankCap < min(rounds * round, side) else { return nil }
        return
            "a round stacks rank \(round): from round \(rankCap / round + 1) on the correction is truncated to --rank-cap \(rankCap), and clients fetch all of it in every round; --rank-cap \(min(rounds * round, 2 * side)) keeps it exact, for more memory"
    }
}
