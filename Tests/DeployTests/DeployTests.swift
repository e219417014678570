/// The files in deploy/ say what the programs understand.

import FoundationEssentials
import Plan
import TestSupport
import Testing
import Transport
import UpdateCodec
import Yams

@Suite struct DeployTests {
    static func text(_ name: String) throws -> String {
        let data = try Data(contentsOf: URL(filePath: Golden.repository + "/deploy/" + name))
        return String(decoding: data, as: UTF8.self)
    }

    static let keys = [
        "model", "listen", "state", "output", "strategy", "rounds", "clients_per_round", "min_clients", "quorum", "deadline",
        "weighting", "seed", "ranks", "alpha", "rank_stabilized", "target_modules", "rank_cap", "start", "local_steps",
        "batch_size", "gradient_accumulation", "sequence_length", "learning_rate", "schedule", "warmup_steps", "optimizer",
        "weight_decay", "gradient_clip", "quantize", "exact_match", "exact_match_marker", "init_adapter",
        "compute", "saved_activations", "compress", "compress_downlink", "error_feedback", "residual_decay", "dp", "epsilon",
        "delta", "clip",
        "noise_multiplier", "client_sampling_rate", "clip_quantile", "clip_learning_rate", "clip_count_noise", "public_counts",
        "public_evaluation", "task", "labels",
    ]

    @Test func theSampleHasEveryKeyOnceSetOrCommentedOut() throws {
        let lines = try Self.text("federation.yaml").split(separator: "\n").map(String.init)
        for key in Self.keys {
            #expect(lines.count { $0.hasPrefix("\(key):") || $0.hasPrefix("#\(key):") } == 1, "\(key)")
        }
        let set = try #require(try Yams.load(yaml: Self.text("federation.yaml")) as? [String: Any])
        #expect(set.keys.allSatisfy { Self.keys.contains($0) })
        #expect(
            Set(Self.keys).subtracting(set.keys) == [
                "alpha", "init_adapter", "epsilon", "noise_multiplier", "clip_quantile", "clip_count_noise", "labels",
            ])
    }

    @Test func theSamplesValuesAreThePlansDefaults() throws {
        let set = try #require(try Yams.load(yaml: Self.text("federation.yaml")) as? [String: Any])
        let plan = FederationPlan()
        #expect(set["strategy"] as? String == plan.strategy.rawValue)
        #expect(set["clients_per_round"] as? Int == plan.clientsPerRound)
        #expect(set["deadline"] as? Int == Int(plan.deadlineSeconds))
        #expect(set["weighting"] as? String == plan.weighting.rawValue)
        #expect(set["seed"] as? Int == Int(plan.seed))
        #expect(set["ranks"] as? [Int] == plan.ranks)
        #expect(set["rank_stabilized"] as? Bool == plan.rankStabilized)
        #expect(set["target_modules"] as? [String] == plan.targetModules)
        #expect(set["task"] as? String == plan.task.rawValue)
        #expect(set["rank_cap"] as? Int == plan.rankCap)
        #expect(set["start"] as? String == plan.start.rawValue)
        #expect(set["local_steps"] as? Int == plan.localSteps)
        #expect(set["batch_size"] as? Int == plan.batchSize)
        #expect(set["gradient_accumulation"] as? Int == plan.gradientAccumulation)
        #expect(set["sequence_length"] as? Int == plan.sequenceLength)
        #expect(set["learning_rate"] as? Double == plan.learningRate)
        #expect(set["schedule"] as? String == plan.schedule.rawValue)
        #expect(set["warmup_steps"] as? Int == plan.warmupSteps)
        #expect(set["optimizer"] as? String == plan.optimizer.rawValue)
        #expect(set["weight_decay"] as? Int == Int(plan.weightDecay))
        #expect(set["gradient_clip"] as? Int == Int(plan.gradientClip))
        #expect(set["quantize"] as? String == plan.quantize.rawValue)
        #expect(set["exact_match"] as? Int == plan.exactMatchTokens)
        #expect(set["exact_match_marker"] as? String == plan.exactMatchMarker)
        #expect(set["compute"] as? String == plan.compute.rawValue)
        #expect(set["saved_activations"] as? String == plan.savedActivations.rawValue)
        #expect(set["compress"] as? String == plan.compress.description)
        #expect(set["compress_downlink"] as? String == plan.compressDownlink.description)
        #expect(set["error_feedback"] as? Bool == plan.errorFeedback)
        #expect(set["residual_decay"] as? Double == plan.residualDecay)
        #expect(set["dp"] as? String == plan.privacy.rawValue)
        #expect(set["delta"] as? Double == plan.delta)
        #expect(set["clip"] as? Int == Int(plan.clip))
        #expect(set["client_sampling_rate"] as? Int == Int(plan.clientSamplingRate))
        #expect(set["clip_learning_rate"] as? Double == plan.clipLearningRate)
        #expect(set["public_counts"] as? Bool == plan.publicCounts)
        #expect(set["public_evaluation"] as? Bool == plan.publicEvaluation)
        _ = try TransportAddress(listening: try #require(set["listen"] as? String))
    }

    @Test func theServicesRunTheProgramsWithTheSamplesPaths() throws {
        let coordinator = try Self.text("tributary-coordinator.service")
        #expect(
            coordinator.contains(
                "\nExecStart=/usr/local/bin/tributary-coordinator start --config /etc/tributary/federation.yaml\n"))
        let client = try Self.text("tributary-client@.service")
        #expect(client.contains("\nExecStart=/usr/local/bin/tributary-client join ${COORDINATOR} --name %i "))
        for unit in [coordinator, client] {
            #expect(unit.contains("\nRestart=on-failure\n") && unit.contains("\nEnvironment=SWIFT_BACKTRACE=enable=no\n"))
            #expect(unit.contains("\nStateDirectory=tributary/") && unit.contains("\nNoNewPrivileges=yes\n"))
        }
        // Every variable of the unit is in the sample of its environment.
        let settings = try Self.text("client.env").split(separator: "\n").filter { !$0.hasPrefix("#") }
        #expect(settings.map { String($0.prefix { $0 != "=" }) } == ["COORDINATOR", "MODEL", "DATA", "OPTIONS"])
        let address = try #require(settings.first { $0.hasPrefix("COORDINATOR=") }).dropFirst("COORDINATOR=".count)
        _ = try TransportAddress(dialing: String(address))
    }
}
