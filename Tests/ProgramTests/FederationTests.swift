/// Whole federations of processes: the same bits as a simulation, also after kills.

import FoundationEssentials
import Glibc
import Primitives
import TestSupport
import Testing

/// A strategy's flags: every part of the plan that changes bits is away from its default.
private func plan(_ strategy: String, ranks: String, rounds: Int = 3, _ more: [String] = []) -> [String] {
    [
        "--strategy", strategy, "--ranks", ranks, "--rounds", "\(rounds)", "--local-steps", "2", "--batch-size", "2",
        "--sequence-length",
        "24",
        "--learning-rate", "0.003", "--schedule", "cosine", "--seed", "7",
    ] + more
}

@Suite(.serialized) struct ProcessFederationTests {
    static let strategies: [(name: String, ranks: String, maximumRanks: [Int?], more: [String])] = [
        ("fedit", "4", [nil, nil, nil], []),
        ("ffa-lora", "4", [nil, nil, nil], ["--quantize", "nf4"]),
        ("flora", "2,4,8", [2, 4, 8], ["--weighting", "uniform"]),
        ("fed-sb", "4", [nil, nil, nil], ["--start", "gradient"]),
        ("fed-sb", "4", [nil, nil, nil], ["--start", "xs", "--optimizer", "sgd"]),
        ("fedit", "4", [nil, nil, nil], ["--start", "loftq", "--quantize", "nf4"]),
        ("ffa-lora", "4", [nil, nil, nil], ["--start", "loftq", "--quantize", "fp4"]),
    ]

    @Test(arguments: strategies.indices) func processesReachTheSimulationsBits(index: Int) throws {
        let (name, ranks, maximumRanks, more) = Self.strategies[index]
        let federation = try Federation(plan(name, ranks: ranks, more), maximumRanks: maximumRanks)
        let simulated = try federation.simulate()
        try federation.startCoordinator()
        let clients = try (0..<3).map { try federation.join($0) }
        #expect(try federation.finish(clients) == simulated)

        let status = try federation.status()
        #expect(status["finished"]?.bool == true && status["rounds_done"]?.int == 3)
        #expect(status["coordinator_process"]?.isNull == true)
        let metrics = try String(decoding: Data(contentsOf: URL(filePath: federation.output + "/metrics.jsonl")), as: UTF8.self)
        let lines = try metrics.split(separator: "\n").map { try JSONValue(parsing: $0.utf8) }
        #expect(lines.map { $0["round"]?.int } == [1, 2, 3])
        #expect(lines.allSatisfy { $0["participants"]?.elements?.compactMap(\.text) == Federation.names })
        #expect(lines.allSatisfy { ($0["eval_loss"]?.double ?? 0) > 0 && ($0["train_loss"]?.double ?? 0) > 0 })
        // The same bytes are counted on both sides of a simulation and of sockets.
        let expected = try String(
            decoding: Data(contentsOf: URL(filePath: federation.folder.file("simulated/metrics.jsonl"))), as: UTF8.self
        ).split(separator: "\n").map { try JSONValue(parsing: $0.utf8) }
        for key in ["uplink_bytes", "downlink_bytes", "one_time_bytes", "train_loss", "eval_loss"] {
            #expect(lines.map { $0[key] } == expected.map { $0[key] }, "\(key)")
        }
        for (client, process) in clients.enumerated() {
            #expect(process.events.last?["event"]?.text == "finished", "client \(client)")
        }
    }

    @Test(arguments: ["fedit", "flora"]) func processesThatClassifyReachTheSimulationsBits(strategy: String) throws {
        let ranks: [Int?] = strategy == "flora" ? [2, 4, 8] : [nil, nil, nil]
        let labels = TinyEncoder.labels.joined(separator: ",")
        let federation = try Federation(
            plan(strategy, ranks: strategy == "flora" ? "2,4,8" : "4", ["--task", "classify", "--labels", labels]),
            maximumRanks: ranks, classifies: true)
        let simulated = try federation.simulate()
        try federation.startCoordinator()
        let clients = try (0..<3).map { try federation.join($0) }
        #expect(try federation.finish(clients) == simulated)
        let lines = try federation.metrics(in: federation.output)
        let expected = try federation.metrics(in: federation.folder.file("simulated"))
        for key in ["uplink_bytes", "downlink_bytes", "train_loss", "eval_loss", "eval_accuracy", "eval_macro_f1"] {
            #expect(lines.map { $0[key] } == expected.map { $0[key] } && lines.allSatisfy { $0[key]?.double != nil }, "\(key)")
        }
    }

    @Test func aCoordinatorMustBeToldTheLabels() throws {
        let federation = try Federation(plan("fedit", ranks: "4", ["--task", "classify"]), classifies: true)
        func start(_ more: [String]) throws -> String {
            let finished = try Finished.run(
                "tributary-coordinator",
                ["start", "--model", federation.model, "--output", federation.output] + federation.plan + more,
                in: federation.folder)
            #expect(finished.status != 0)
            return finished.errors
        }
        #expect(try start([]).contains("labels are missing: name all of them with --labels"))
        let file = federation.folder.file("labels.txt")
        try Data("animal\n\ntool\n".utf8).write(to: URL(filePath: file))
        #expect(try start(["--labels", file]).contains("labels.txt:2: this line is empty"))
    }

    @Test(arguments: [0, 2, 3]) func aKilledCoordinatorGoesOnWithTheSameBits(index: Int) throws {
        let (name, ranks, maximumRanks, more) = Self.strategies[index]
        let federation = try Federation(plan(name, ranks: ranks, rounds: 6, more), maximumRanks: maximumRanks)
        let simulated = try federation.simulate()
        let first = try federation.startCoordinator()
        let clients = try (0..<3).map { try federation.join($0) }
        // The last client stands still, so that the second round cannot close before the kill.
        try first.event("closed") { $0["round"]?.int == 1 }
        clients[2].send(SIGSTOP)
        try first.event("contribution") { ($0["round"]?.int ?? 0) >= 2 }
        first.kill()
        let status = try federation.status()
        #expect(status["finished"]?.bool == false && status["round"]?.int == (status["rounds_done"]?.int ?? 0) + 1)
        #expect(status["coordinator_process"]?.isNull == true)
        clients[2].send(SIGCONT)
        let second = try federation.startCoordinator()
        #expect(try federation.finish(clients) == simulated)
        let resumed = try second.event("resumed")
        #expect(resumed["contributions"] == status["contributed"])
        // What was stored was not trained again.
        let stored = status["contributed"]?.elements?.compactMap(\.text) ?? []
        for event in second.events where event["event"]?.text == "contribution" && event["round"] == resumed["round"] {
            #expect(!stored.contains(event["client"]?.text ?? ""))
        }
    }

    @Test func aKilledClientRejoinsAndTheBitsAreTheSame() throws {
        let federation = try Federation(plan("fedit", ranks: "4", rounds: 6))
        let simulated = try federation.simulate()
        let coordinator = try federation.startCoordinator()
        var clients = try (0..<3).map { try federation.join($0) }
        try coordinator.event("closed") { $0["round"]?.int == 1 }
        clients[1].kill()
        clients[1] = try federation.join(1)
        #expect(try federation.finish(clients) == simulated)
        #expect(clients[1].events.contains { $0["event"]?.text == "joined" })
    }

    @Test func aRoundClosesAtItsDeadlineWithoutAKilledClient() throws {
        let federation = try Federation(plan("fedit", ranks: "4", rounds: 6, ["--quorum", "2", "--deadline", "3"]))
        try federation.partition()
        let coordinator = try federation.startCoordinator()
        let clients = try (0..<3).map { try federation.join($0) }
        try coordinator.event("round") { $0["round"]?.int == 1 }
        clients[2].kill()
        let closed = try coordinator.event("closed", seconds: 20) { ($0["participants"]?.elements?.count ?? 3) == 2 }
        #expect(closed["participants"]?.elements?.compactMap(\.text) == ["client-000", "client-001"])
        for client in clients[..<2] { client.send(SIGINT) }
        for client in clients[..<2] { #expect(try client.exitStatus() == ExitStatus.interrupted.rawValue) }
    }

    @Test func interruptsSayWhatWasKeptAndTheSameCommandGoesOn() throws {
        let federation = try Federation(plan("fedit", ranks: "4", rounds: 6))
        let simulated = try federation.simulate()
        let first = try federation.startCoordinator()
        var clients = try (0..<3).map { try federation.join($0) }
        try first.event("contribution")
        clients[0].send(SIGINT)
        #expect(try clients[0].exitStatus() == ExitStatus.interrupted.rawValue)
        #expect(clients[0].errors.contains("kept in \(federation.folder.file("state-client-000"))"))
        #expect(clients[0].errors.contains("the same command goes on"))
        first.send(SIGTERM)
        #expect(try first.exitStatus() == ExitStatus.interrupted.rawValue)
        #expect(first.errors.contains("the same command goes on"))
        clients[0] = try federation.join(0)
        // The client waits for the coordinator, and says so.
        try clients[0].waitForError("nothing listens on port")
        try federation.startCoordinator()
        #expect(try federation.finish(clients) == simulated)
    }

    /// The first client by name does not hold the unquantized model; the second does.
    @Test func theStartComesFromTheClientThatHoldsTheUnquantizedModel() throws {
        let federation = try Federation(plan("fedit", ranks: "4", ["--start", "loftq"]))
        let source = federation.folder.file("unquantized")
        try FileManager.default.moveItem(atPath: federation.model, toPath: source)
        let quantized = try Finished.run(
            "tributary", ["model", "quantize", "--model", source, "--output", federation.model, "--quantize", "nf4"],
            in: federation.folder)
        #expect(quantized.status == 0, "\(quantized.errors)")
        let simulated = try federation.simulate(["--unquantized-model", source])
        let coordinator = try federation.startCoordinator()
        let clients = try (0..<3).map { try federation.join($0, $0 == 1 ? ["--unquantized-model", source] : []) }
        #expect(try federation.finish(clients) == simulated)
        let records = try federation.metrics(in: federation.output)
        #expect((records.first?["one_time_bytes"]?.int ?? 0) > 0)
        withExtendedLifetime(coordinator) {}
    }

    @Test func anAdapterOfAnyRoundCanBeExported() throws {
        let federation = try Federation(plan("flora", ranks: "2,4,8"), maximumRanks: [2, 4, 8])
        try federation.partition()
        try federation.startCoordinator()
        let final = try federation.finish(try (0..<3).map { try federation.join($0) })
        for round in 0...3 {
            let output = federation.folder.file("export-\(round)")
            let finished = try Finished.run(
                "tributary-coordinator", ["export", "--state", federation.state, "--round", "\(round)", "--output", output],
                in: federation.folder)
            #expect(finished.status == 0, "\(finished.errors)")
            #expect((try federation.adapter(in: output) == final) == (round == 3))
        }
        let beyond = try Finished.run(
            "tributary-coordinator",
            ["export", "--state", federation.state, "--round", "4", "--output", federation.folder.file("export-4")],
            in: federation.folder)
        #expect(beyond.status == ExitStatus.usage.rawValue)
        #expect(beyond.sentence == "there is no adapter of round 4: the run has rounds 0 to 3")
    }
}
