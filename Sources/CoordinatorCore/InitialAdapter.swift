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
        ofAdapter folder: String, plan: inout FederationPlan, maps: [LinearMap]
    ) throws(Failure) -> AdapterWeights {
        let adapter = try PEFTAdapter(folder: folder)
        guard adapter.labels.isEmpty || plan.labels.isEmpty || adapter.labels == plan.labels else {
            throw Failure(
                .badData,
                "\(folder) was trained for other labels, or in another order, than this run's: give its labels.json's with --labels"
            )
        }
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
