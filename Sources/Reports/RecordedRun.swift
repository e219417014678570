/// A run as its folder tells it: `run.json` and `metrics.jsonl`, read back.

import Primitives

/// What a run was, and what each of its rounds measured. A value that the folder does not have is nil, never a guess.
public struct RecordedRun: Sendable, Equatable {
    /// One line of `metrics.jsonl`; bytes are of all clients together.
    public struct Round: Sendable, Equatable {
        /// From 1, ascending, perhaps with gaps.
        public let round: Int
        /// How many clients contributed; nil where that is a secret.
        public let participants: Int?
        /// Nats a token, or a text of a classifier.
        public let trainLoss: Double?
        public let evaluationLoss: Double?
        /// A classifier's, between 0 and 1.
        public let evaluationAccuracy: Double?
        public let evaluationMacroF1: Double?
        /// Bytes and seconds are nil where they would tell who took part.
        public let uplinkBytes: Int?
        public let downlinkBytes: Int?
        public let oneTimeBytes: Int?
        public let uplinkRatios: Ratios
        public let downlinkRatios: Ratios
        public let seconds: Double?
        /// Spent up to this round, where the coordinator keeps the budget.
        public let epsilon: Double?
    }

    /// How many times more bytes the same values take in bfloat16 and in float32.
    public struct Ratios: Sendable, Equatable {
        public var bfloat16: Double?
        public var float32: Double?
    }

    /// Differential privacy, as `run.json` sums it up.
    public struct PrivacySummary: Sendable, Equatable {
        /// `example` or `client`.
        public let level: String
        /// What was spent where the coordinator knows it, else the budget.
        public let epsilon: Double?
        public let delta: Double?
        public let guarantee: String?
    }

    /// What the report calls the run.
    public var label: String
    public let strategy: String
    /// Whether texts are classified.
    public let classifies: Bool
    public let compress: String
    public let errorFeedback: Bool
    /// Nil without any.
    public let privacy: PrivacySummary?
    public let seed: Int?
    public let plannedRounds: Int?
    public let isFinished: Bool
    /// Of the adapter before the first round, if it was evaluated.
    public let initialLoss: Double?
    public let initialAccuracy: Double?
    /// At least one.
    public let rounds: [Round]
    /// The plan without its seed, and the base model, as text: equal for runs that differ in the seed alone.
    public let kind: String

    /// - Parameters:
    ///   - folder: the run's folder, for messages
    ///   - run: the content of `run.json`
    ///   - metrics: the content of `metrics.jsonl`
    /// - Throws: `Failure(.badData)` that names the file, and the line if one is damaged
    public init(label: String, folder: String, run: [UInt8], metrics: [UInt8]) throws(Failure) {
        let file = folder + "/run.json"
        let value: JSONValue
        do {
            value = try JSONValue(parsing: run)
        } catch {
            throw Failure(.badData, "\(file) is damaged at byte \(error.position): \(error.message); \(Self.remedy)")
        }
        guard let plan = value["plan"], plan.members != nil, let strategy = plan["strategy"]?.text else {
            throw Failure(
                .badData,
                "\(file) has no plan with a strategy: name the --output folder of a simulation or of a coordinator")
        }
        rounds = try Self.rounds(metrics, file: folder + "/metrics.jsonl")
        self.label = label
        self.strategy = strategy
        classifies = plan["task"]?.text == "classify"
        compress = plan["compress"]?.text ?? "f32"
        errorFeedback = plan["errorFeedback"]?.bool ?? false
        seed = plan["seed"]?.int
        plannedRounds = plan["rounds"]?.int
        isFinished = value["finished"]?.bool ?? false
        initialLoss = value["initial_eval_loss"]?.double
        initialAccuracy = value["initial_eval_accuracy"]?.double
        privacy = value["privacy"].flatMap { summary in
            summary["level"]?.text.map { level in
                PrivacySummary(
                    level: level, epsilon: (summary["epsilon_spent"] ?? summary["epsilon_target"])?.double,
                    delta: summary["delta"]?.double, guarantee: summary["guarantee"]?.text)
            }
        }
        let rest = (plan.members ?? []).filter { $0.key != "seed" }
        kind = JSONValue.array([value["base_model"] ?? .null, .object(rest)]).compact
    }

    /// Both files are written whole after each round, from the run's state.
    private static let remedy = "run the same command again, which writes the file anew from the run's state"

    private static func rounds(_ bytes: [UInt8], file: String) throws(Failure) -> [Round] {
        var rounds: [Round] = []
        for (index, line) in bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false).enumerated()
        where !line.allSatisfy({ $0 == 0x20 || $0 == 0x0D || $0 == 0x09 }) {
            func damaged(_ reason: String) -> Failure {
                Failure(.badData, "\(file) line \(index + 1) is damaged: \(reason); \(remedy)")
            }
            let value: JSONValue
            do { value = try JSONValue(parsing: line) } catch { throw damaged("\(error.message) at byte \(error.position)") }
            do throws(Damage) {
                let round = try Round(value)
                guard round.round > rounds.last?.round ?? 0 else {
                    throw Damage(reason: "round \(round.round) is not after the round before it")
                }
                rounds.append(round)
            } catch {
                throw damaged(error.reason)
            }
        }
        guard !rounds.isEmpty else {
            throw Failure(.badData, "\(file) has no round yet: report again when the run has finished its first round")
        }
        return rounds
    }

    fileprivate struct Damage: Error { let reason: String }
}

extension RecordedRun.Round {
    fileprivate init(_ value: JSONValue) throws(RecordedRun.Damage) {
        guard value.members != nil else { throw .init(reason: "it is \(value.kind), not an object") }
        func number(_ key: String) throws(RecordedRun.Damage) -> Double? {
            guard let member = value[key], !member.isNull else { return nil }
            guard let number = member.double else { throw .init(reason: "\(key) is \(member.kind) that is no usable number") }
            return number
        }
        func count(_ key: String) throws(RecordedRun.Damage) -> Int {
            guard let member = value[key], let count = member.int, count >= 0 else {
                throw .init(reason: "\(key) is no whole number of at least 0")
            }
            return count
        }
        func told(_ key: String) throws(RecordedRun.Damage) -> Int? {
            value[key]?.isNull == true ? nil : try count(key)
        }
        round = try count("round")
        participants = value["participants"]?.elements?.count
        trainLoss = try number("train_loss")
        evaluationLoss = try number("eval_loss")
        evaluationAccuracy = try number("eval_accuracy")
        evaluationMacroF1 = try number("eval_macro_f1")
        uplinkBytes = try told("uplink_bytes")
        downlinkBytes = try told("downlink_bytes")
        oneTimeBytes = try told("one_time_bytes")
        uplinkRatios = .init(bfloat16: try number("uplink_ratio_bf16"), float32: try number("uplink_ratio_f32"))
        downlinkRatios = .init(bfloat16: try number("downlink_ratio_bf16"), float32: try number("downlink_ratio_f32"))
        seconds = try number("seconds")
        epsilon = try number("epsilon")
    }
}
