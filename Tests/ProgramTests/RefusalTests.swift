/// What either side refuses, each in one sentence on the side that can do something about it.

import FoundationEssentials
import Glibc
import Primitives
import TestSupport
import Testing
import Transport
import Wire

@Suite(.serialized) struct RefusalTests {
    private static let plan = [
        "--ranks", "4", "--rounds", "2", "--local-steps", "2", "--batch-size", "2", "--sequence-length", "24",
    ]

    @Test func aPortAndAStateBelongToOneCoordinator() throws {
        let federation = try Federation(Self.plan)
        try federation.startCoordinator()
        let port = try Finished.run(
            "tributary-coordinator",
            ["start", "--model", federation.model, "--output", federation.folder.file("other"), "--listen", federation.address]
                + Self.plan, in: federation.folder)
        #expect(port.status == ExitStatus.unavailable.rawValue)
        #expect(port.sentence.contains("is in use, perhaps by another coordinator"))
        let state = try Finished.run(
            "tributary-coordinator",
            ["start", "--model", federation.model, "--output", federation.output, "--listen", "tcp://127.0.0.1:0"] + Self.plan,
            in: federation.folder)
        #expect(state.status == ExitStatus.refused.rawValue)
        #expect(state.sentence.contains("is in use by another coordinator"))
        #expect(try federation.status()["coordinator_process"]?.int != nil)
    }

    @Test func aStateGoesOnWithItsOwnPlanOnly() throws {
        let federation = try Federation(Self.plan)
        let first = try federation.startCoordinator()
        first.kill()
        let other = try Finished.run(
            "tributary-coordinator",
            [
                "start", "--model", federation.model, "--output", federation.output, "--listen", "tcp://127.0.0.1:0",
                "--min-clients", "3",
            ]
                + Self.plan + ["--seed", "9"], in: federation.folder)
        #expect(other.status == ExitStatus.cannotCreate.rawValue)
        #expect(other.sentence.contains("seed 0 there, 9 here"))
    }

    @Test func aFrameOfAnotherVersionGetsOneClearSentenceOnBothSides() throws {
        let federation = try Federation(Self.plan)
        let coordinator = try federation.startCoordinator()
        // An old client: today's poll with another version number. The magic and the version never move.
        var frame = Request.poll(Poll(session: 1, lastContribution: nil)).encoded()
        frame[4] = 9
        let connection = try ClientConnection(to: TransportAddress(dialing: federation.address))
        let reply = try Reply(decoding: try connection.request(frame, timeoutSeconds: 10))
        guard case .refused(let refusal) = reply else {
            Issue.record("the reply is \(reply)")
            return
        }
        let sentence =
            "the client speaks protocol version 9 and this coordinator version \(WireLimits.protocolVersion): install the same release of Tributary on both"
        #expect(refusal.code == .protocolVersion && refusal.message == sentence)
        try coordinator.waitForError(sentence)
        // Nonsense does no harm either.
        _ = try connection.request(Array("GET / HTTP/1.1".utf8), timeoutSeconds: 10)
        #expect(try federation.status()["finished"]?.bool == false)
    }

    @Test func aCoordinatorOfAnotherVersionEndsTheClientWithOneSentence() throws {
        let federation = try Federation(Self.plan)
        try federation.partition()
        let listener = try CoordinatorListener(listening: TransportAddress(host: "127.0.0.1", port: 0))
        let thread = Thread { [listener] in
            try? listener.run { _ in
                var frame = Reply.acknowledged.encoded()
                frame[4] = 9
                return frame
            }
        }
        defer {
            listener.stop()
            thread.join()
            listener.close()
        }
        let client = try Finished.run(
            "tributary-client",
            [
                "join", listener.address.description, "--name", "a", "--model", federation.model, "--data",
                federation.folder.file("parts/client-000.jsonl"), "--state", federation.folder.file("state-a"),
            ], in: federation.folder)
        #expect(client.status == ExitStatus.protocolError.rawValue)
        #expect(client.sentence.contains("speaks protocol version 9 and this client version \(WireLimits.protocolVersion)"))
    }

    @Test func aSecondClientOfTheSameNameIsRefusedUntilTheNameIsForgotten() throws {
        let federation = try Federation(Self.plan)
        try federation.partition()
        let coordinator = try federation.startCoordinator()
        let first = try federation.join(0)
        try first.event("joined")
        let sameFolder = try federation.join(0)
        #expect(try sameFolder.exitStatus() == ExitStatus.refused.rawValue)
        #expect(sameFolder.errors.contains("is in use by another process"))
        let second = try federation.join(0, state: "another-state")
        #expect(try second.exitStatus() == ExitStatus.refused.rawValue)
        #expect(second.errors.contains("the name client-000 belongs to another client of this run"))
        // The first client's machine burns down. The coordinator runs on and notices the command.
        first.kill()
        let unknown = try federation.forget("nobody")
        #expect(unknown.status == ExitStatus.usage.rawValue)
        #expect(unknown.sentence == "this run has no client nobody; it has client-000")
        #expect(try federation.forget("client-000").status == 0)
        try coordinator.event("forgotten") { $0["client"]?.text == "client-000" }
        let third = try federation.join(0, state: "another-state")
        try third.event("joined")
        // And while no coordinator runs.
        coordinator.kill()
        #expect(try federation.forget("client-000").status == 0)
        #expect(try federation.status()["members"]?.elements?.isEmpty == true)
    }

    @Test func anotherBaseIsRefusedBeforeTraining() throws {
        let federation = try Federation(Self.plan)
        try federation.partition()
        try federation.startCoordinator()
        try TinyBase.write("qwen3-qknorm", to: federation.folder.file("other-model"))
        let client = try federation.join(0, ["--model", federation.folder.file("other-model")])
        #expect(try client.exitStatus() == ExitStatus.refused.rawValue)
        #expect(client.errors.contains("client client-000 holds another base model"))
    }

    @Test func aClientWithoutUsableDataOrCoordinatorSaysSo() throws {
        let federation = try Federation(Self.plan)
        try federation.partition()
        func join(_ data: String, _ more: [String] = []) throws -> Finished {
            try Finished.run(
                "tributary-client",
                [
                    "join", "tcp://127.0.0.1:1", "--name", "a", "--model", federation.model, "--data", data, "--state",
                    federation.folder.file("a"),
                ]
                    + more, in: federation.folder)
        }
        let missing = try join(federation.folder.file("none.jsonl"))
        #expect(missing.status == ExitStatus.missingInput.rawValue)
        try Data("{\"text\": \"fine\"}\nnot json\n".utf8).write(to: URL(filePath: federation.folder.file("broken.jsonl")))
        let broken = try join(federation.folder.file("broken.jsonl"))
        #expect(broken.status == ExitStatus.badData.rawValue)
        #expect(broken.sentence.contains("broken.jsonl:2"))
        try Data().write(to: URL(filePath: federation.folder.file("empty.jsonl")))
        #expect(try join(federation.folder.file("empty.jsonl")).status == ExitStatus.badData.rawValue)
        let alone = try join(federation.folder.file("parts/client-000.jsonl"), ["--give-up-after", "0.2"])
        #expect(alone.status == ExitStatus.unavailable.rawValue)
        #expect(alone.errors.contains("nothing listens on port 1 there"))
        let wrongName = try Finished.run(
            "tributary-client", ["join", "tcp://127.0.0.1:1", "--name", "a/b", "--model", federation.model, "--data", "x"],
            in: federation.folder)
        #expect(wrongName.status == ExitStatus.usage.rawValue)
    }

    @Test func theRolesAreReachedThroughTheMainProgram() throws {
        let folder = TemporaryFolder()
        for role in ["coordinator", "client"] {
            let version = try Finished.run("tributary", [role, "--version"], in: folder)
            #expect(version.status == 0 && version.output == Version.current + "\n", "\(version.errors)")
        }
        let status = try Finished.run("tributary", ["coordinator", "status", "--state", folder.file("none")], in: folder)
        #expect(status.status == ExitStatus.missingInput.rawValue)
    }
}
