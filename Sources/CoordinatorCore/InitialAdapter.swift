/// A run that starts from an existing PEFT adapter (`--init-adapter`), and the adapter that a run leaves behind.

import Adapters
import Checkpoints
import Plan
import Primitives

extension RunStart {
    /// The weights that the run starts from, as `RunStart.init` takes them; their digest becomes part of the plan.
    ///
    /// - Throws: `Failure` if the adapter cannot be read, belongs to another base, or does not fit the plan
    public static func weights(
        of adapter: PEFTAdapter, plan: inout FederationPlan, maps: [LinearMap]
    ) throws(Failure) -> AdapterWeights {
        if plan.task == .classify { try adapter.checkLabels(plan.labels) }
        // The plan says what cannot work before the adapter is converted.
        plan.initialAdapterDigest = Digest(of: [])
        try plan.validate(maps: maps)
        let specification = try plan.specification(rank: plan.ranks[0], maps: maps)
        var generator = SeededGenerator(seed: plan.seed, purpose: "lora-a")
        var weights = specification.initialWeights(&generator)
        if let head = plan.derivedHead(specification) { weights.trained.replaceLast(with: head) }
        if plan.strategy == .flora {
            weights.correction = try adapter.stack(targets: specification.maps, maps: maps)
            try adapter.setHead(of: &weights)
        } else {
            weights = try adapter.weights(specification, maps: maps, start: weights)
        }
        var builder = DigestBuilder()
        for state in [weights.trained, weights.frozen, weights.correction] {
            if let state { builder.update(state.digest.bytes) }
        }
        plan.initialAdapterDigest = builder.finish()
        return weights
    }
}

extension FederationPlan {
    /// Takes the labels of the adapter that the run starts from, where none were named.
    ///
    /// - Throws: `Failure` if some were named and its head has others, or if nobody knows what its head tells
    public mutating func settleLabels(with adapter: PEFTAdapter) throws(Failure) {
        guard task == .classify else { return }
        try adapter.checkLabels(labels)
        if labels.isEmpty { labels = adapter.labels }
    }
}

extension RunFolder {
    /// Writes `adapter/` in PEFT's format; one that was there is replaced in one step.
    ///
    /// - Parameters:
    ///   - base: the base model's name or folder, for PEFT
    ///   - headPlace: where a classifier's head goes
    ///   - labels: of a classifier, in the order of its outputs
    public func writeAdapter(
        _ weights: AdapterWeights, maps: [LinearMap], base: String, headPlace: PEFTAdapter.HeadPlace = .savedModules,
        labels: [String] = []
    ) throws(Failure) {
        let adapter = PEFTAdapter(
            entries: exportedFactors(weights: weights), head: exportedHead(weights: weights), headPlace: headPlace,
            labels: labels,
            baseModel: base)
        try adapter.write(folder: path + "/adapter", maps: maps)
    }
}
