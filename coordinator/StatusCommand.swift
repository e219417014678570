/// `tributary-coordinator status`: where a run stands, from its file, whether or not a coordinator runs.

import ArgumentParser
import CoordinatorCore
import Plan
import Primitives
import Programs

struct StatusCommand: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "status", abstract: "Say where a run stands.")

    @Option(help: ArgumentHelp("The run's state.", valueName: "file"))
    var state: String = StateFile.defaultPath
    @Flag(help: "Write one JSON object.")
    var json = false

    func run() throws {
        let file = StateFile(path: state)
        let (_, federation) = try file.open()
        let status = RunStatus(federation, coordinator: file.coordinator)
        if json {
            Console.json(status.json)
        } else {
            for line in status.lines { Console.line(line) }
        }
    }
}

/// What the state says about a run.
struct RunStatus {
    let federation: StoredFederation
    /// The process id of the coordinator that runs, or nil.
    let coordinator: Int?

    init(_ federation: StoredFederation, coordinator: Int?) {
        self.federation = federation
        self.coordinator = coordinator
    }

    private var plan: FederationPlan { federation.plan }

    /// The round that is open, if one is.
    private var open: RoundAttempt? {
        guard let attempt = federation.attempt, !federation.records.contains(where: { $0.round == attempt.round }) else {
            return nil
        }
        return attempt
    }

    private var contributed: [String] {
        federation.contributions.filter { $0.round == open?.round && $0.counted == nil }.map(\.client).sorted()
    }

    private var missing: [String] { open?.selected.filter { !contributed.contains($0) } ?? [] }

    private var position: String {
        if federation.finished { return "finished: \(federation.records.count) rounds" }
        if let open {
            return "round \(open.round) of \(plan.rounds)" + (open.attempt > 1 ? ", attempt \(open.attempt)" : "")
        }
        if federation.records.count == plan.roundsWithinBudget {
            return "the last evaluation, after round \(federation.records.count)"
        }
        return "before round \(federation.records.count + 1) of \(plan.rounds)"
    }

    var lines: [String] {
        var lines = [
            "run \(federation.runID): \(plan.strategy.rawValue), \(position)",
            coordinator.map { "the coordinator runs (process \($0))" } ?? "no coordinator runs",
        ]
        if open != nil, !isSecret {
            lines.append("contributed: \(contributed.isEmpty ? "nobody yet" : contributed.joined(separator: ", "))")
            if !missing.isEmpty { lines.append("missing: \(missing.joined(separator: ", "))") }
        } else if federation.members.count < plan.minimumClients {
            lines.append("waiting for clients: \(federation.members.count) of \(plan.minimumClients) have joined")
        }
        if !federation.members.isEmpty {
            lines.append("")
            lines += table(
                ["client", "rank", "examples", "rounds", "last loss"],
                federation.members.map { member in
                    let own = federation.contributions.filter { $0.client == member.name }
                    let last = own.max { $0.round < $1.round }
                    return [
                        member.name, "\(member.rank)", member.exampleCount.map { "\($0)" } ?? "-",
                        isSecret ? "-" : "\(own.count { $0.counted == true })",
                        last?.trainLoss.map { Readable.decimal($0, 4) } ?? "-",
                    ]
                })
        }
        if !federation.records.isEmpty {
            lines.append("")
            lines += table(
                ["round", "clients", "train loss", "eval loss", "up", "down", "seconds"],
                federation.records.map { record in
                    let evaluation = EvaluationSummary(federation.evaluations.filter { $0.round == record.round })
                    return [
                        "\(record.round)", isSecret ? "-" : "\(record.participants.count)",
                        record.trainLoss.map { Readable.decimal($0, 4) } ?? "-",
                        evaluation.loss.map { Readable.decimal($0, 4) } ?? "-",
                        isSecret ? "-" : Readable.bytes(record.traffic.uplink),
                        isSecret ? "-" : Readable.bytes(record.traffic.downlink),
                        isSecret ? "-" : Readable.decimal(record.seconds, 1),
                    ]
                })
        }
        return lines
    }

    /// Whom private rounds drew is told to nobody.
    private var isSecret: Bool { plan.privacy == .client }

    var json: JSONValue {
        .object([
            .init("run", .string(federation.runID)), .init("strategy", .string(plan.strategy.rawValue)),
            .init("rounds", .integer(plan.rounds)), .init("rounds_done", .integer(federation.records.count)),
            .init("finished", .boolean(federation.finished)),
            .init("coordinator_process", coordinator.map(JSONValue.integer) ?? .null),
            .init("round", open.map { .integer($0.round) } ?? .null),
            .init("attempt", open.map { .integer($0.attempt) } ?? .null),
            .init("contributed", isSecret ? .null : .array(contributed.map(JSONValue.string))),
            .init("missing", isSecret ? .null : .array(missing.map(JSONValue.string))),
            .init(
                "members",
                .array(
                    federation.members.map { member in
                        let own = federation.contributions.filter { $0.client == member.name }
                        return .object([
                            .init("name", .string(member.name)), .init("rank", .integer(member.rank)),
                            .init("examples", member.exampleCount.map(JSONValue.integer) ?? .null),
                            .init("rounds_counted", isSecret ? .null : .integer(own.count { $0.counted == true })),
                            .init("last_train_loss", .optional(own.max { $0.round < $1.round }?.trainLoss)),
                        ])
                    })),
            .init("records", .array(federation.records.map { RunFolder.line($0, federation) })),
        ])
    }

    /// Columns as wide as their widest cell; the first is aligned to the left, the others to the right.
    private func table(_ header: [String], _ rows: [[String]]) -> [String] {
        let all = [header] + rows
        let widths = header.indices.map { column in all.map { $0[column].count }.max() ?? 0 }
        return all.map { row in
            var line = ""
            for (column, cell) in row.enumerated() {
                let padding = String(repeating: " ", count: widths[column] - cell.count)
                line += column == 0 ? cell + padding : "  " + padding + cell
            }
            return line
        }
    }
}
