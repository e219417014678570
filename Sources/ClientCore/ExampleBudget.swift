/// Example-level privacy on the client: the noise that its own number of examples needs, what a round costs, and whether the
/// data's owner allows it. The client's ledger binds, whatever the coordinator believes.

import Plan
import Primitives
import Privacy

struct ExampleBudget: Sendable {
    private let plan: FederationPlan
    private let run: String
    private let client: String
    private let policy: ClientPrivacy
    /// What the steps of one round cost.
    let perRound: PrivacyCharge
    /// Whether all rounds of the plan fit into every limit, each once: then nothing needs to be computed in between.
    private let allFit: Bool

    /// - Throws: `Failure(.refused)` if not even a first round fits into what the owner allows.
    init(
        plan: FederationPlan, run: String, client: String, examples: Int, policy: ClientPrivacy, storage: any ClientStorage
    ) throws(Failure) {
        self.plan = plan
        self.run = run
        self.client = client
        self.policy = policy
        if policy.maximumEpsilon != nil, plan.delta > policy.maximumDelta {
            throw Failure(
                .refused,
                "this client declines: the run's delta \(plan.delta) is above --max-delta \(policy.maximumDelta); nothing was sent"
            )
        }
        perRound = PrivacyCharge(
            samplingRate: plan.exampleSamplingRate(examples: examples),
            noiseMultiplier: try plan.exampleNoiseMultiplier(examples: examples), steps: plan.localSteps)
        let ledger = try storage.ledger()
        let elsewhere = ledger.entries.filter { !$0.id.hasPrefix(run + "/") }.map(\.charge)
        var whole = perRound
        whole.steps = plan.totalSteps
        let limits = [
            (plan.epsilon, [whole], plan.delta), (policy.maximumEpsilon, elsewhere + [whole], policy.maximumDelta),
        ]
        allFit = limits.allSatisfy { limit, charges, delta in
            limit.map { PrivacyAccountant.epsilon(of: charges, delta: delta) <= $0 } ?? true
        }
        // Who has taken part already may have a contribution that is paid for and still to be sent: each round is then checked
        // when it comes.
        if !allFit, elsewhere.count == ledger.entries.count { try check(ledger, round: nil) }
    }

    /// One round's use of the data: the key of its noise, and its line in the ledger.
    struct Use: Sendable {
        let training: PrivateTraining
        let id: String
        let cost: PrivacyCharge

        /// Durable when it returns; the same use is charged once.
        func charge(storage: any ClientStorage) throws(Failure) {
            var ledger = try storage.ledger()
            try ledger.charge(id: id, cost)
            try storage.keep(ledger)
        }
    }

    /// - Parameter context: of everything that the result depends on; equal only where the same work is done again
    /// - Throws: `Failure(.refused)` if the budget is spent
    func use(round: Int, attempt: Int, context: Digest, storage: any ClientStorage) throws(Failure) -> Use {
        // The same work under the other kind of key is other noise on the same data, and is paid for again.
        let id = "\(run)/\(round)/\(attempt)/\(context)" + (policy.unsafeSeed == nil ? "" : "/unsafe")
        let ledger = try storage.ledger()
        let own = ledger.entries.filter { $0.id.hasPrefix(run + "/") }
        // What was computed at the start holds only while the run's entries are what it assumed.
        let isAsPlanned = allFit && own.count < plan.rounds && own.allSatisfy { $0.charge == perRound }
        if !ledger.holds(id: id), !isAsPlanned { try check(ledger, round: round) }
        let key: NoiseKey
        if let seed = policy.unsafeSeed {
            key = .unsafeSeeded(seed, name: client)
        } else {
            key = try storage.noiseKey().derived("run " + run)
        }
        return Use(
            training: try PrivateTraining(
                clip: plan.clip, noiseMultiplier: perRound.noiseMultiplier, expectedBatchSize: plan.stepSize,
                samplingRate: perRound.samplingRate,
                key: key.derived("training", round: round, attempt: attempt, context: context)),
            id: id, cost: perRound)
    }

    private func check(_ ledger: PrivacyLedger, round: Int?) throws(Failure) {
        let what = round.map { "round \($0)" } ?? "one more round"
        if let limit = policy.maximumEpsilon {
            let after = ledger.epsilon(delta: policy.maximumDelta, adding: perRound)
            guard after <= limit else {
                throw Failure(
                    .refused,
                    "this client declines: \(what) would bring its data to epsilon \(short(after)) at delta \(policy.maximumDelta), above --max-epsilon \(limit) (spent so far: \(short(ledger.epsilon(delta: policy.maximumDelta)))); nothing was sent"
                )
            }
        }
        if let limit = plan.epsilon {
            let own = ledger.entries.filter { $0.id.hasPrefix(run + "/") }.map(\.charge)
            let after = PrivacyAccountant.epsilon(of: own + [perRound], delta: plan.delta)
            guard after <= limit else {
                throw Failure(
                    .refused,
                    "this client declines: \(what) would bring it to epsilon \(short(after)), above the run's budget of \(limit) at delta \(plan.delta); nothing was sent"
                )
            }
        }
    }

    private func short(_ value: Double) -> String { "\((value * 1000).rounded() / 1000)" }
}
