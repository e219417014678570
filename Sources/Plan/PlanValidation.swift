/// Refuses a plan that cannot work, before anything starts.

import Adapters
import Checkpoints
import Primitives
import UpdateCodec

extension FederationPlan {
    /// Checks the plan against a checkpoint: everything that `validate(maps:)` checks, and what depends on how the model is
    /// stored.
    ///
    /// - Throws: `Failure(.usage)` that names the option, its value and what is possible.
    public func validate(for checkpoint: CheckpointFolder) throws(Failure) {
        let maps = checkpoint.configuration.linearMaps
        try validateTask(for: checkpoint.configuration)
        try validate(maps: maps)
        let positions = checkpoint.configuration.maximumPositions
        guard sequenceLength <= positions else {
            throw Failure(
                .usage, "sequence-length is \(sequenceLength), but the model has \(positions) positions: use at most \(positions)"
            )
        }
        guard quantize == .stored || quantize == .none || !maps.contains(where: { checkpoint.isQuantized($0.name) }) else {
            throw Failure(
                .usage,
                "quantize is \(quantize.rawValue), but \(checkpoint.path) is quantized already: only stored and none are possible"
            )
        }
        try validateStart(for: checkpoint)
    }

    /// - Throws: `Failure(.usage)` if the start makes up for what quantization lost, and the base lost nothing
    public func validateStart(for checkpoint: CheckpointFolder) throws(Failure) {
        let maps = checkpoint.configuration.linearMaps
        guard !needsUnquantizedModel || maps.contains(where: { checkpoint.isQuantized($0.name) }) else {
            throw Failure(
                .usage,
                "start loftq makes up for what quantization lost, but \(checkpoint.path) is not quantized and quantize is \(quantize.rawValue): add --quantize nf4, or leave --start out"
            )
        }
    }

    /// Checks every value and combination against the model's linear maps.
    ///
    /// - Throws: `Failure(.usage)` that names the option, its value and what is possible.
    public func validate(maps: [LinearMap]) throws(Failure) {
        func require(_ condition: Bool, _ message: @autoclosure () -> String) throws(Failure) {
            guard condition else { throw Failure(.usage, message()) }
        }
        try PlanBounds.rounds.check(rounds)
        try PlanBounds.localSteps.check(localSteps)
        try PlanBounds.checkStep(
            batchSize: batchSize, gradientAccumulation: gradientAccumulation, sequenceLength: sequenceLength,
            learningRate: learningRate, weightDecay: weightDecay, gradientClip: gradientClip)
        try require(
            warmupSteps >= 0 && warmupSteps < totalSteps,
            "warmup-steps is \(warmupSteps): it is between 0 and the run's \(totalSteps) steps")
        try PlanBounds.minimumClients.check(minimumClients)
        try PlanBounds.clientsPerRound.check(clientsPerRound)
        try PlanBounds.quorum.check(quorum)
        try require(
            clientsPerRound == 0 || quorum <= clientsPerRound,
            "quorum \(quorum) is above clients-per-round \(clientsPerRound): a round could never close")
        try require(
            clientsPerRound == 0 || clientsPerRound <= minimumClients,
            "clients-per-round \(clientsPerRound) is above min-clients \(minimumClients): the run would start with too few clients to select from"
        )
        try PlanBounds.deadline.check(deadlineSeconds)
        try PlanBounds.exactMatch.check(exactMatchTokens)
        try validateLabels()
        try require(
            exactMatchTokens > 0 || exactMatchMarker.isEmpty,
            "exact-match-marker means nothing without --exact-match: give both, or leave it out")
        try require(!ranks.isEmpty, "ranks is empty: give one rank, or several for flora")
        try require(
            strategy == .flora || Set(ranks).count == 1,
            "strategy \(strategy.rawValue) takes one rank, not \(ranks.map(String.init).joined(separator: ",")): use flora for mixed ranks"
        )
        try require(
            ranks.count <= PlanBounds.largestRankCount,
            "ranks holds \(ranks.count): at most \(PlanBounds.largestRankCount) are possible")
        try PlanBounds.rankCap.check(rankCap)
        try require(
            strategy != .fedSB || alpha == nil, "alpha is not used by fed-sb, whose scale is 1: leave --alpha out")
        try require(
            strategy != .fedSB || !rankStabilized, "rank-stabilized is not used by fed-sb, whose scale is 1: leave it out")
        try require(
            strategy != .fedSB || initialAdapterDigest == nil,
            "fed-sb cannot start from an adapter: its frozen factors come from its own start (gradient or xs)")
        let starts: [StartName] =
            switch strategy {
            case .fedSB: StartName.ofLoRASB
            case .fedit, .ffaLoRA: [.zero, .loftq]
            case .flora: [.zero]
            }
        try require(
            starts.contains(startName),
            strategy == .flora && startName == .loftq
                ? "start loftq is not possible with flora, whose clients begin each round with new factors: use fedit or ffa-lora"
                : "start \(start.rawValue) means nothing to \(strategy.rawValue): possible are \(starts.map(\.rawValue).joined(separator: ", "))"
        )
        try require(
            startName != .loftq || initialAdapterDigest == nil,
            "start loftq and an adapter to start from exclude one another: leave --start or --init-adapter out")
        for rank in ranks { _ = try specification(rank: rank, maps: maps) }
        try validateCompression()
        try validatePrivacy()
    }

    private func validateCompression() throws(Failure) {
        func require(_ condition: Bool, _ message: @autoclosure () -> String) throws(Failure) {
            guard condition else { throw Failure(.usage, message()) }
        }
        if errorFeedback {
            try require(
                strategy != .flora,
                "error-feedback is not possible with flora, whose clients begin each round with new factors: leave it out")
            try require(
                compress.allowsErrorFeedback,
                "error-feedback is not possible with compress \(compress): it needs an encoding that leaves something out and whose scale is the mean kept magnitude, such as compeft:0.1"
            )
        }
        try require((0...1).contains(residualDecay), "residual-decay is \(residualDecay): it is between 0 and 1")
        try require(
            errorFeedback || residualDecay == FederationPlan().residualDecay,
            "residual-decay means nothing without --error-feedback: leave it out")
        guard compressDownlink != .float32 else { return }
        try require(
            strategy != .flora,
            "compress-downlink is not possible with flora, whose clients receive the round's stacked factors: leave it out")
        try require(
            compressDownlink.allowsErrorFeedback,
            "compress-downlink \(compressDownlink) is not possible: what it leaves out is sent in later rounds, which diverges with the scale sigma; use such as compeft:0.1"
        )
    }

    private func validatePrivacy() throws(Failure) {
        func require(_ condition: Bool, _ message: @autoclosure () -> String) throws(Failure) {
            guard condition else { throw Failure(.usage, message()) }
        }
        let standard = FederationPlan()
        guard privacy != .none else {
            for (name, isSet) in [
                ("epsilon", epsilon != nil), ("noise-multiplier", noiseMultiplier != nil), ("clip", clip != standard.clip),
                ("delta", delta != standard.delta), ("client-sampling-rate", clientSamplingRate != 1),
                ("clip-quantile", clipQuantile != nil), ("clip-learning-rate", clipLearningRate != standard.clipLearningRate),
                ("clip-count-noise", clipCountNoise != nil), ("public-counts", publicCounts),
                ("public-evaluation", publicEvaluation),
            ] {
                try require(!isSet, "\(name) means nothing without differential privacy: add --dp example or --dp client")
            }
            return
        }
        try require(
            epsilon != nil || noiseMultiplier != nil,
            "dp \(privacy.rawValue) has no strength: give --epsilon (the budget of the whole run) or --noise-multiplier")
        if let epsilon { try PlanBounds.epsilon.check(epsilon) }
        if let noiseMultiplier { try PlanBounds.noiseMultiplier.check(noiseMultiplier) }
        try require(
            delta > 0 && delta < 1, "delta is \(delta): it is between 0 and 1, and well below 1 over the number protected")
        try PlanBounds.clip.check(clip)
        try require(
            isStartPublic,
            "fed-sb's start from a gradient is computed on one client's data, which the budget of dp \(privacy.rawValue) does not cover: use --start xs, which needs no data"
        )
        switch privacy {
        case .none: break
        case .example:
            try require(
                gradientClip == 0,
                "gradient-clip is \(gradientClip): under dp example --clip bounds each example's gradient; leave --gradient-clip out"
            )
            try require(
                weighting == .uniform || publicCounts,
                "weighting samples would tell each client's number of examples: use --weighting uniform, or declare them with --public-counts"
            )
            try require(
                packing == .off,
                "packing is \(packing.rawValue): under dp example a step draws examples, each of which is one record; use off")
            for (name, isSet) in [
                ("client-sampling-rate", clientSamplingRate != 1), ("clip-quantile", clipQuantile != nil),
                ("clip-learning-rate", clipLearningRate != standard.clipLearningRate),
                ("clip-count-noise", clipCountNoise != nil),
            ] {
                try require(!isSet, "\(name) belongs to dp client and means nothing to dp example: leave it out")
            }
        case .client:
            try require(
                strategy != .flora,
                "dp client is not possible with flora: its clients' factors are stacked, and the sum that would take the noise is never formed; use fedit, ffa-lora or fed-sb, or dp example"
            )
            try require(
                weighting == .uniform,
                "weighting \(weighting.rawValue) is not possible with dp client, whose clients count alike: use uniform")
            try require(
                clientsPerRound == 0,
                "clients-per-round \(clientsPerRound) is not possible with dp client, whose clients are drawn independently: use --client-sampling-rate"
            )
            try require(
                quorum == 0,
                "quorum \(quorum) is not possible with dp client, whose rounds close however few report: leave it out")
            try require(
                clientSamplingRate > 0 && clientSamplingRate <= 1,
                "client-sampling-rate is \(clientSamplingRate): it is above 0 and at most 1")
            try require(!publicCounts, "public-counts means nothing to dp client, whose clients count alike: leave it out")
            if let clipQuantile {
                try require(clipQuantile > 0 && clipQuantile < 1, "clip-quantile is \(clipQuantile): it is between 0 and 1")
                try PlanBounds.clipLearningRate.check(clipLearningRate)
                if let clipCountNoise { try PlanBounds.clipCountNoise.check(clipCountNoise) }
            } else {
                try require(clipCountNoise == nil, "clip-count-noise means nothing without --clip-quantile: leave it out")
                try require(
                    clipLearningRate == standard.clipLearningRate,
                    "clip-learning-rate means nothing without --clip-quantile: leave it out")
            }
        }
    }
}
