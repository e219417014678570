/// A coordinator and its clients as processes on the loopback interface, and the same federation simulated.

import FoundationEssentials
import Glibc
import Primitives
import TestSupport

final class Federation {
    let folder = TemporaryFolder()
    let plan: [String]
    /// `--max-rank` of each client, or nil.
    let maximumRanks: [Int?]
    /// `--unsafe-dp-seed` where the coordinator or the clients make the noise; a simulation takes it in either case.
    let coordinatorSeed: [String]
    let clientSeed: [String]
    /// What clients dial in place of the coordinator's address.
    var dialed: String?
    /// Where the coordinator listens, once it has started.
    private(set) var address = "tcp://127.0.0.1:0"
    var coordinator: ProgramProcess?

    static let names = ["client-000", "client-001", "client-002"]

    /// - Parameter plan: flags of the plan
    init(
        _ plan: [String], maximumRanks: [Int?] = [nil, nil, nil], coordinatorSeed: [String] = [], clientSeed: [String] = []
    ) throws {
        self.plan = plan
        self.coordinatorSeed = coordinatorSeed
        self.clientSeed = clientSeed
        self.maximumRanks = maximumRanks
        try TinyBase.write(to: model)
        try Data(TinyBase.records(36).utf8).write(to: URL(filePath: folder.file("all.jsonl")))
        try Data(TinyBase.records(6, seed: 6).utf8).write(to: URL(filePath: folder.file("held-out.jsonl")))
    }

    var model: String { folder.file("model") }
    var output: String { folder.file("run") }
    var state: String { folder.file("run/state.sqlite") }

    /// Runs the simulation, which also writes the clients' data; returns its adapter's bytes.
    func simulate(_ more: [String] = []) throws -> Data {
        let finished = try Finished.run(
            "tributary",
            [
                "simulate", "--model", model, "--data", folder.file("all.jsonl"), "--clients", "3", "--write-partitions",
                folder.file("parts"), "--eval-data", folder.file("held-out.jsonl"), "--output", folder.file("simulated"),
                "--json",
            ] + plan + coordinatorSeed + clientSeed + more, in: folder)
        guard finished.status == 0 else {
            throw ProgramFailure(description: "simulate ended with \(finished.status): \(finished.errors)")
        }
        return try adapter(in: folder.file("simulated"))
    }

    /// Divides the data as a simulation would, without one.
    func partition() throws {
        try FileManager.default.createDirectory(atPath: folder.file("parts"), withIntermediateDirectories: true)
        for (index, name) in Self.names.enumerated() {
            try Data(TinyBase.records(8 + 4 * index, seed: UInt64(index)).utf8).write(
                to: URL(filePath: folder.file("parts/\(name).jsonl")))
        }
    }

    func adapter(in run: String) throws -> Data {
        try Data(contentsOf: URL(filePath: run + "/adapter/adapter_model.safetensors"))
    }

    /// Starts the coordinator, again on the port that it had.
    @discardableResult func startCoordinator(_ more: [String] = []) throws -> ProgramProcess {
        let process = try ProgramProcess(
            "tributary-coordinator",
            ["start", "--model", model, "--output", output, "--listen", address, "--min-clients", "3", "--json"] + plan
                + coordinatorSeed
                + more,
            in: folder, name: "coordinator")
        coordinator = process
        let listening = try process.event("listening")
        address = listening["address"]?.text ?? address
        return process
    }

    func join(_ index: Int, state: String? = nil, _ more: [String] = []) throws -> ProgramProcess {
        let name = Self.names[index]
        var arguments = [
            "join", dialed ?? address, "--name", name, "--model", model, "--data", folder.file("parts/\(name).jsonl"), "--state",
            folder.file(state ?? "state-\(name)"), "--json",
        ]
        if let rank = maximumRanks[index] { arguments += ["--max-rank", "\(rank)"] }
        if index == 0 { arguments += ["--eval-data", folder.file("held-out.jsonl")] }
        return try ProgramProcess("tributary-client", arguments + clientSeed + more, in: folder, name: name)
    }

    /// The lines of a run's metrics.
    func metrics(in run: String) throws -> [JSONValue] {
        try String(decoding: Data(contentsOf: URL(filePath: run + "/metrics.jsonl")), as: UTF8.self)
            .split(separator: "\n").map { try JSONValue(parsing: $0.utf8) }
    }

    /// Waits for the end of the run and expects success everywhere; returns the exported adapter's bytes.
    func finish(_ clients: [ProgramProcess]) throws -> Data {
        guard let coordinator else { throw ProgramFailure(description: "there is no coordinator") }
        for process in [coordinator] + clients {
            let status = try process.exitStatus(seconds: 60)
            guard status == 0 else {
                throw ProgramFailure(description: "\(process.name) ended with \(status): \(process.errors)")
            }
        }
        return try adapter(in: output)
    }

    func status() throws -> JSONValue {
        let finished = try Finished.run("tributary-coordinator", ["status", "--state", state, "--json"], in: folder)
        guard finished.status == 0 else { throw ProgramFailure(description: finished.errors) }
        return try JSONValue(parsing: finished.output.utf8)
    }

    func forget(_ name: String) throws -> Finished {
        try Finished.run("tributary-coordinator", ["forget", name, "--state", state], in: folder)
    }
}
