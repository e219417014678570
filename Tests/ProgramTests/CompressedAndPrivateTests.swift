/// Federations of processes with compression and with seeded differential privacy: the bits of a simulation, also after kills
/// of either side, and the bytes that a packet counter sees.

import FoundationEssentials
import Glibc
import Primitives
import TestSupport
import Testing
import Wire

private func plan(_ rounds: Int, _ more: [String]) -> [String] {
    [
        "--ranks", "4", "--rounds", "\(rounds)", "--local-steps", "2", "--batch-size", "2", "--sequence-length", "24",
        "--learning-rate", "0.003", "--seed", "7",
    ] + more
}

@Suite(.serialized) struct CompressedAndPrivateTests {
    static let compression = [
        "--strategy", "fedit", "--compress", "compeft:0.1", "--error-feedback", "--compress-downlink", "compeft:0.2",
    ]
    static let seed = ["--unsafe-dp-seed", "3"]
    static let kinds: [(flags: [String], coordinatorSeed: [String], clientSeed: [String])] = [
        (compression, [], []),
        (
            [
                "--strategy", "ffa-lora", "--dp", "example", "--noise-multiplier", "1", "--epsilon", "100", "--clip", "0.5",
                "--public-evaluation", "--compress", "int8", "--error-feedback",
            ], [], seed
        ),
        (
            [
                "--strategy", "fed-sb", "--start", "xs", "--dp", "client", "--noise-multiplier", "1", "--clip", "0.01",
                "--client-sampling-rate", "0.8", "--clip-quantile", "0.5", "--public-evaluation",
            ], seed, []
        ),
    ]

    private func federation(_ index: Int, rounds: Int) throws -> Federation {
        let (flags, coordinatorSeed, clientSeed) = Self.kinds[index]
        return try Federation(plan(rounds, flags), coordinatorSeed: coordinatorSeed, clientSeed: clientSeed)
    }

    @Test(arguments: kinds.indices) func processesReachTheSimulationsBitsAlsoAfterKillsOfEitherSide(index: Int) throws {
        let federation = try federation(index, rounds: 6)
        let simulated = try federation.simulate()
        let first = try federation.startCoordinator()
        var clients = try (0..<3).map { try federation.join($0) }
        try first.event("closed") { $0["round"]?.int == 1 }
        clients[1].kill()
        clients[1] = try federation.join(1)
        try first.event("closed") { $0["round"]?.int == 3 }
        first.kill()
        clients[2].kill()
        let second = try federation.startCoordinator()
        clients[2] = try federation.join(2)
        #expect(try federation.finish(clients) == simulated)

        let lines = try federation.metrics(in: federation.output)
        let expected = try federation.metrics(in: federation.folder.file("simulated"))
        #expect(lines.map { $0["round"]?.int } == Array(1...6))
        for key in ["train_loss", "epsilon", "clip", "participants"] {
            #expect(lines.map { $0[key] } == expected.map { $0[key] }, "\(key)")
        }
        // A round without the client that evaluates may go on before it has: then nothing is reported.
        for (line, other) in zip(lines, expected) {
            let both = [line["eval_loss"], other["eval_loss"]]
            if both.allSatisfy({ $0?.double != nil }) { #expect(both[0] == both[1]) }
        }
        #expect(lines.last?["eval_loss"]?.double != nil && expected.last?["eval_loss"]?.double != nil)
        guard index > 0 else { return }
        // Who was drawn, what was lost and how many examples there are is told nowhere.
        #expect(lines.allSatisfy { $0["train_loss"]?.isNull == true })
        let status = try federation.status()
        #expect(status["members"]?.elements?.allSatisfy { $0["examples"]?.isNull == true } == true)
        guard index == 2 else { return }
        let epsilon = lines.compactMap { $0["epsilon"]?.double }
        #expect(epsilon.count == 6 && epsilon == epsilon.sorted())
        #expect(lines.allSatisfy { $0["participants"]?.isNull == true && $0["uplink_bytes"]?.isNull == true })
        #expect(lines.allSatisfy { $0["privacy_guarantee"]?.text?.hasPrefix("none") == true })
        for event in first.events + second.events {
            let name = event["event"]?.text ?? ""
            #expect(name != "contribution")
            for key in ["participants", "selected", "contributions", "missing", "uplink_bytes"] {
                if let value = event[key] { #expect(value.isNull, "\(name) tells \(key)") }
            }
            if name == "closed" { #expect(event["privacy_guarantee"]?.text?.hasPrefix("none") == true) }
        }
        let run = try JSONValue(parsing: Data(contentsOf: URL(filePath: federation.output + "/run.json")))
        #expect(run["privacy"]?["guarantee"]?.text?.hasPrefix("none") == true)
    }

    @Test func aClientWhoseBudgetIsSpentDeclinesAndSaysSoInOneSentence() throws {
        let federation = try Federation(
            plan(2, ["--dp", "example", "--noise-multiplier", "1", "--clip", "1"]), clientSeed: Self.seed)
        try federation.partition()
        try federation.startCoordinator()
        let client = try federation.join(1, ["--max-epsilon", "0.1"])
        #expect(try client.exitStatus() == ExitStatus.refused.rawValue)
        #expect(client.errors.contains("this client declines") && client.errors.contains("above --max-epsilon 0.1"))
        #expect(try federation.status()["members"]?.elements?.isEmpty == true, "it never said who it is")
    }

    /// Frames of one direction of a connection that speaks the Scalability Protocols over TCP: 8 bytes of greeting, then for
    /// each message 8 bytes of length and, in front of the frame, the 4 bytes by which a request knows its reply.
    private func frames(_ bytes: [UInt8]) throws -> [[UInt8]] {
        #expect(bytes.count >= 8 && bytes[0] == 0 && bytes[1] == UInt8(ascii: "S") && bytes[2] == UInt8(ascii: "P"))
        var frames: [[UInt8]] = []
        var position = 8
        while position + 8 <= bytes.count {
            let length = bytes[position..<position + 8].reduce(0) { $0 << 8 | Int($1) }
            let end = position + 8 + length
            guard length >= 4, end <= bytes.count else { break }
            frames.append(Array(bytes[position + 12..<end]))
            position = end
        }
        #expect(position == bytes.count, "a connection ends with a whole message")
        return frames
    }

    @Test(arguments: [compression, ["--strategy", "fed-sb", "--start", "xs"]])
    func theRecordsBytesAreThoseOfAPacketCounter(flags: [String]) throws {
        let federation = try Federation(plan(3, flags))
        try federation.partition()
        try federation.startCoordinator()
        let port = try #require(federation.address.split(separator: ":").last.flatMap { UInt16($0) })
        let proxy = try CountingProxy(to: port)
        federation.dialed = "tcp://127.0.0.1:\(proxy.port)"
        let clients = try (0..<3).map { try federation.join($0) }
        _ = try federation.finish(clients)
        let connections = proxy.close()
        var (payload, framed, messages, greetings, used) = (0, 0, 0, 0, 0)
        var leaving = 0
        for connection in connections {
            payload += connection.up.count + connection.down.count
            // Clients dial again when the coordinator has gone: they greet, and nobody answers.
            greetings += (connection.up.isEmpty ? 0 : 1) + (connection.down.isEmpty ? 0 : 1)
            guard !connection.up.isEmpty, !connection.down.isEmpty else { continue }
            used += 1
            let requests = try frames(connection.up)
            let replies = try frames(connection.down)
            for frame in requests + replies {
                framed += frame.count
                messages += 1
            }
            // A client that was told the end says goodbye, which the coordinator may not wait for.
            for (index, frame) in requests.enumerated() {
                guard case .leave? = try? Request(decoding: frame) else { continue }
                leaving += frame.count + (index < replies.count ? replies[index].count : 0)
            }
        }
        var recorded = 0
        for line in try federation.metrics(in: federation.output) {
            for key in ["uplink_bytes", "downlink_bytes", "one_time_bytes", "control_bytes"] {
                recorded += try #require(line[key]?.int)
            }
        }
        #expect(used == 6, "each client dials twice")
        // 12 bytes for each message and 8 for each greeting are what the transport adds.
        #expect(payload == framed + 12 * messages + 8 * greetings)
        #expect(recorded <= framed && recorded >= framed - leaving, "recorded \(recorded), framed \(framed), goodbyes \(leaving)")
    }

    @Test func theCoordinatorRefusesWhatCannotWork() throws {
        let folder = TemporaryFolder()
        try TinyBase.write(to: folder.file("model"))
        for (flags, sentence) in [
            (["--compress", "zip"], "\"zip\" is no codec"),
            (["--compress", "compeft:0.1:sigma=1", "--error-feedback"], "error-feedback is not possible"),
            (["--strategy", "flora", "--compress-downlink", "bf16"], "compress-downlink is not possible with flora"),
            (["--dp", "client"], "dp client has no strength"),
            (["--dp", "everything"], "dp"),
            (["--dp", "client", "--epsilon", "1", "--quorum", "2"], "quorum 2 is not possible"),
            (["--dp", "example", "--epsilon", "1", "--unsafe-dp-seed", "1"], "--unsafe-dp-seed is for dp client"),
            (["--unsafe-dp-seed", "1"], "--unsafe-dp-seed is for dp client"),
            (["--dp", "client", "--epsilon", "0.001", "--noise-multiplier", "1"], "raise --noise-multiplier"),
        ] {
            let finished = try Finished.run(
                "tributary-coordinator",
                [
                    "start", "--model", folder.file("model"), "--output", folder.file("run"), "--listen", "tcp://127.0.0.1:0",
                    "--sequence-length", "24", "--ranks", "4",
                ] + flags, in: folder)
            #expect(finished.status == ExitStatus.usage.rawValue, "\(flags): \(finished.errors)")
            #expect(finished.errors.contains(sentence), "\(flags): \(finished.errors)")
        }
        for value in ["0", "-1", "nan", "inf"] {
            let finished = try Finished.run(
                "tributary-client",
                [
                    "join", "tcp://127.0.0.1:1", "--name", "a", "--model", folder.file("model"), "--data", "x",
                    "--max-epsilon=\(value)",
                ], in: folder)
            #expect(finished.status == ExitStatus.usage.rawValue && finished.sentence.contains("--max-epsilon is"))
        }
    }
}
