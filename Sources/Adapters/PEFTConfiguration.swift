/// `adapter_config.json`: what its fields mean for the numbers, and which of them are refused.

import Checkpoints
import Primitives

struct PEFTConfiguration {
    let rank: Int
    let alpha: Double
    let rankStabilized: Bool
    private let rankPattern: [Rule]
    private let alphaPattern: [Rule]
    let baseModel: String?
    /// Modules that are saved whole: a classifier's head.
    let savedModules: [String]
    private let path: String

    /// A member of `rank_pattern` or `alpha_pattern`.
    private struct Rule {
        let pattern: ModulePattern
        let value: Double
    }
    /// Bytes of all keys of patterns together.
    private let patternBytes: Int

    /// Fields that say nothing about the computation, or whose effect is in the tensors already: which modules have
    /// factors (target_modules and its kin), how they started, how training dropped out.
    private static let harmless: Set<String> = [
        "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform",
        "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision", "target_modules", "ensure_weight_tying",
        "runtime_config", "eva_config", "low_cpu_mem_usage",
    ]
    /// Fields that are read below.
    private static let read: Set<String> = [
        "peft_type", "task_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights",
        "modules_to_save",
    ]
    /// Tasks with the computation that is known here; a head is part of the first only.
    private static let tasks: Set<String> = ["SEQ_CLS", "CAUSAL_LM", "FEATURE_EXTRACTION"]
    /// Starts that leave the base's weights alone; others (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ) subtract from them.
    private static let harmlessStarts: Set<String> = ["gaussian", "eva", "orthogonal"]

    init(json: JSONValue, path: String) throws(Failure) {
        func refused(_ what: String, _ why: String) -> Failure { Failure(.badData, "\(path): \(what), \(why)") }
        guard let members = json.members else { throw refused("the file is not a JSON object", "export the adapter again") }
        guard let type = json["peft_type"]?.text, type == "LORA" else {
            throw refused("peft_type is \(json["peft_type"]?.compact ?? "missing")", "only LORA adapters are supported")
        }
        if let task = json["task_type"], !task.isNull, !Self.tasks.contains(task.text ?? "") {
            throw refused(
                "task_type is \(task.compact)", "only CAUSAL_LM, SEQ_CLS and FEATURE_EXTRACTION adapters are supported")
        }
        var savedModules: [String] = []
        if let saved = json["modules_to_save"], !Self.isOff(saved) {
            guard json["task_type"]?.text == "SEQ_CLS", let names = saved.elements?.compactMap(\.text),
                names.count == saved.elements?.count
            else {
                throw refused(
                    "modules_to_save is \(saved.compact)", "which is supported for the heads of classifiers (SEQ_CLS) only")
            }
            guard names.count <= 64 else {
                throw refused("modules_to_save names \(names.count) modules", "a head has a few")
            }
            savedModules = names
        }
        let bias = json["bias"]?.text ?? "none"
        guard bias == "none" else { throw refused("bias is \(bias)", "adapters with trained biases are not supported") }
        if let start = json["init_lora_weights"]?.text, !Self.harmlessStarts.contains(start) {
            throw refused(
                "init_lora_weights is \(start)",
                "such an adapter belongs to a base that was changed at its start: convert it to plain LoRA first")
        }
        for member in members where !Self.harmless.contains(member.key) && !Self.read.contains(member.key) {
            guard Self.isOff(member.value) else {
                throw refused(
                    "\(member.key) is \(String(member.value.compact.prefix(80)))", "which is not supported: only plain LoRA is")
            }
        }
        guard let rank = json["r"]?.int, 1...1 << 20 ~= rank else {
            throw refused("r is \(json["r"]?.compact ?? "missing")", "a rank is a whole number from 1")
        }
        guard let alpha = json["lora_alpha"]?.double else {
            throw refused("lora_alpha is \(json["lora_alpha"]?.compact ?? "missing")", "a number is expected")
        }
        var patternBytes = 0
        func pattern(_ key: String) throws(Failure) -> [Rule] {
            guard let value = json[key], !value.isNull else { return [] }
            guard let members = value.members else { throw refused("\(key) is no object", "export the adapter again") }
            var all: [Rule] = []
            for member in members {
                let name = String(member.key.prefix(80))
                guard let number = member.value.double else {
                    throw refused("\(key) of \(name) is \(member.value.compact.prefix(80))", "a number is expected")
                }
                do throws(ModulePattern.Problem) {
                    all.append(Rule(pattern: try ModulePattern(member.key), value: number))
                } catch {
                    throw refused(
                        "the key \(name) of \(key) cannot be read: \(error.message)",
                        "write whole names of modules, or regular expressions of names, ., *, +, ?, [...] and (...|...)")
                }
                patternBytes += member.key.utf8.count
            }
            return all
        }
        self.rank = rank
        self.alpha = alpha
        rankStabilized = json["use_rslora"]?.bool ?? false
        rankPattern = try pattern("rank_pattern")
        alphaPattern = try pattern("alpha_pattern")
        self.patternBytes = patternBytes
        baseModel = json["base_model_name_or_path"]?.text
        self.savedModules = savedModules
        self.path = path
    }

    /// Whether the tensor belongs to a saved module.
    func isSaved(_ name: String, prefix: String) -> Bool {
        savedModules.contains { name.hasPrefix(prefix + $0 + ".") }
    }

    /// Null, false, zero or empty.
    private static func isOff(_ value: JSONValue) -> Bool {
        switch value {
        case .null: true
        case .boolean(let flag): !flag
        case .number: value.double == 0
        case .string(let text): text.isEmpty
        case .array(let elements): elements.isEmpty
        case .object(let members): members.isEmpty
        }
    }

    /// Refuses maps that would take the patterns longer than any real adapter's do: time is at most that of the keys' bytes
    /// times the maps'. One pattern for every map of a model of 126 layers is half of what is possible.
    func checkWork(maps: [String]) throws(Failure) {
        let (work, isTooLarge) = maps.reduce(0) { $0 + $1.utf8.count }.multipliedReportingOverflow(by: patternBytes)
        guard !isTooLarge, work <= 1 << 32 else {
            throw Failure(
                .badData,
                "\(path): rank_pattern and alpha_pattern have \(rankPattern.count + alphaPattern.count) keys for \(maps.count) maps, too many to be compared: write one key for maps that are alike"
            )
        }
    }

    /// r and s of one linear map.
    func rankAndScale(of map: String) throws(Failure) -> (Int, Float) {
        let name = Array(map.unicodeScalars)
        /// The first pattern that matches.
        func match(_ rules: [Rule]) -> Double? { rules.first { $0.pattern.matches(name) }?.value }
        let stated = match(rankPattern) ?? Double(rank)
        guard let rank = Int(exactly: stated), 1...1 << 20 ~= rank else {
            throw Failure(.badData, "\(path): rank_pattern gives \(map) the rank \(stated), which is not a whole number from 1")
        }
        let alpha = match(alphaPattern) ?? alpha
        let scale = Float(rankStabilized ? alpha / Double(rank).squareRoot() : alpha / Double(rank))
        // What is written has the scale times the rank in it.
        guard (scale * Float(rank)).isFinite else {
            throw Failure(.badData, "\(path): \(map) has the lora_alpha \(alpha), which is beyond single precision")
        }
        return (rank, scale)
    }

    /// The file's text, with exactly the fields that PEFT needs.
    ///
    /// - Parameters:
    ///   - savedModules: `modules_to_save`
    ///   - task: `task_type`
    static func text(
        rank: Int, alpha: Double, targetModules: [String], savedModules: [String], task: String, baseModel: String?
    ) -> String {
        let alphaText = Int(exactly: alpha).map(String.init) ?? "\(alpha)"
        let json = JSONValue.object([
            .init("alpha_pattern", .object([])), .init("base_model_name_or_path", baseModel.map(JSONValue.string) ?? .null),
            .init("bias", .string("none")), .init("fan_in_fan_out", .boolean(false)), .init("inference_mode", .boolean(true)),
            .init("init_lora_weights", .boolean(true)), .init("lora_alpha", .number(alphaText)),
            .init("lora_dropout", .number("0.0")),
            .init("modules_to_save", savedModules.isEmpty ? .null : .array(savedModules.map(JSONValue.string))),
            .init("peft_type", .string("LORA")), .init("r", .integer(rank)),
            .init("rank_pattern", .object([])), .init("target_modules", .array(targetModules.map(JSONValue.string))),
            .init("task_type", .string(task)), .init("use_dora", .boolean(false)), .init("use_rslora", .boolean(false)),
        ])
        return json.pretty + "\n"
    }
}
