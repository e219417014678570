/// A GGUF file as a model: Hugging Face's names for its tensors, and its metadata as the `config.json` they stand for.

import Glibc
import Primitives

public struct GGUFModel: Sendable {
    let file: GGUFFile
    let architecture: Architecture
    /// What the metadata say, in the words of a `config.json`.
    let configuration: JSONValue
    /// By Hugging Face's names.
    let tensors: [String: StoredTensor]

    /// Architectures by the name that GGUF has for them.
    static let architectures: [String: (architecture: Architecture, className: String)] = [
        "llama": (.llama, "LlamaForCausalLM"), "qwen2": (.qwen2, "Qwen2ForCausalLM"),
    ]

    /// - Throws: `Failure` that names the key or the tensor that is missing, wrong or not supported.
    init(file: GGUFFile) throws(Failure) {
        let metadata = GGUFMetadata(file: file)
        self.file = file
        if case .text(let kind)? = file.metadata["general.type"], kind != "model" {
            throw Failure(.badData, "\(file.path) holds a GGUF \(kind), not a model: name the file of the base model")
        }
        let name = try metadata.text("general.architecture")
        guard let known = Self.architectures[name] else {
            throw Failure(
                .badData,
                "\(file.path): general.architecture is \(name), which is not supported as GGUF; llama and qwen2 are: use the Hugging Face folder of the model"
            )
        }
        if let parts = try metadata.optional("split.count"), parts > 1 {
            throw Failure(
                .badData, "\(file.path) is one of \(parts) parts of a model: put them together with llama-gguf-split --merge")
        }
        architecture = known.architecture

        var tensors: [String: StoredTensor] = [:]
        var factors: StoredTensor?
        let layers = try metadata.size(name + ".block_count", limit: 4096)
        let heads = try metadata.size(name + ".attention.head_count", limit: 1 << 16)
        let hidden = try metadata.size(name + ".embedding_length")
        let headSize =
            try metadata.optional(name + ".attention.key_length") ?? (hidden % heads == 0 ? hidden / heads : 0)
        guard 2...1 << 16 ~= headSize, headSize % 2 == 0 else {
            throw metadata.refused("\(name).attention.key_length is \(headSize)", "rotary positions need an even size of heads")
        }
        // Sorted, so that of several errors always the same one is reported.
        for tensor in file.tensors.values.sorted(by: { $0.name < $1.name }) {
            if tensor.name == "rope_freqs.weight" {
                factors = tensor
                continue
            }
            guard let (hugging, layer) = Self.huggingFaceName(tensor.name), layer ?? 0 < layers else {
                throw Failure(
                    .badData,
                    "\(file.path): tensor \(tensor.name) is none that a \(name) model of \(layers) layers has here: the model computes something that is not supported"
                )
            }
            let isTurned =
                known.architecture.turnsQueriesAndKeys && (tensor.name.contains(".attn_q.") || tensor.name.contains(".attn_k."))
                && tensor.shape[0] % headSize == 0
            tensors[hugging] = StoredTensor(
                name: hugging, dtype: tensor.dtype, shape: tensor.shape, range: tensor.range, file: tensor.file,
                interleavedHeadSize: isTurned ? headSize : nil)
        }
        self.tensors = tensors
        configuration = try Self.configuration(
            metadata, name, className: known.className, headSize: headSize, tensors, factors: factors)
    }

    // MARK: Names

    private static let names: [(gguf: String, huggingFace: String)] = [
        ("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"), ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"), ("attn_v", "self_attn.v_proj"), ("attn_output", "self_attn.o_proj"),
        ("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj"),
    ]
    private static let outerNames: [(gguf: String, huggingFace: String)] = [
        ("token_embd.weight", "model.embed_tokens.weight"), ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
    ]

    /// `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`; nil for a name that no supported model has.
    static func huggingFaceName(_ name: String) -> (name: String, layer: Int?)? {
        if let outer = outerNames.first(where: { $0.gguf == name }) { return (outer.huggingFace, nil) }
        let parts = name.split(separator: ".", omittingEmptySubsequences: false)
        guard parts.count == 4, parts[0] == "blk", let layer = Int(parts[1]), layer >= 0, String(layer) == parts[1],
            parts[3] == "weight" || parts[3] == "bias", let inner = names.first(where: { $0.gguf == parts[2] })
        else { return nil }
        return ("model.layers.\(layer).\(inner.huggingFace).\(parts[3])", layer)
    }

    /// The name in a GGUF file of a tensor that Hugging Face calls `name`; nil for one that GGUF does not name here.
    public static func ggufName(_ name: String) -> String? {
        if let outer = outerNames.first(where: { $0.huggingFace == name }) { return outer.gguf }
        let parts = name.split(separator: ".", maxSplits: 3, omittingEmptySubsequences: false)
        guard parts.count == 4, parts[0] == "model", parts[1] == "layers", Int(parts[2]) != nil else { return nil }
        for suffix in [".weight", ".bias"] where parts[3].hasSuffix(suffix) {
            let inner = parts[3].dropLast(suffix.count)
            if let known = names.first(where: { $0.huggingFace == inner }) { return "blk.\(parts[2]).\(known.gguf)\(suffix)" }
        }
        return nil
    }

    // MARK: Configuration

    /// Keys that change what is computed, and the value at which they change nothing.
    private static let neutral: [(key: String, value: Double?)] = [
        ("expert_count", 0), ("expert_used_count", 0), ("attention.sliding_window", 0), ("attention.scale", 0),
        ("logit_scale", 0), ("embedding_scale", 0), ("residual_scale", 0), ("attention.clamp_kqv", 0),
        ("attn_logit_softcapping", 0), ("final_logit_softcapping", 0), ("attention.layer_norm_epsilon", nil),
        ("rope.dimension_sections", nil), ("rope.scaling.attn_factor", 1), ("attention.causal", 1), ("swin_norm", 0),
    ]

    private static func configuration(
        _ metadata: GGUFMetadata, _ name: String, className: String, headSize: Int, _ tensors: [String: StoredTensor],
        factors: StoredTensor?
    ) throws(Failure) -> JSONValue {
        let heads = try metadata.size(name + ".attention.head_count", limit: 1 << 16)
        let positions = try metadata.size(name + ".context_length")
        for (key, value) in neutral {
            guard let stated = try metadata.number(name + "." + key) else { continue }
            let isNeutral = stated == value || key == "attention.sliding_window" && stated >= Double(positions)
            guard isNeutral else { throw metadata.refused("\(name).\(key) is \(stated)", "models with it are not supported") }
        }
        if let size = try metadata.optional(name + ".attention.value_length"), size != headSize {
            throw metadata.refused(
                "\(name).attention.value_length is \(size)", "only that of the keys, \(headSize), is supported")
        }
        if let size = try metadata.optional(name + ".rope.dimension_count"), size != headSize {
            throw metadata.refused(
                "\(name).rope.dimension_count is \(size)",
                "only rotary positions over the whole head, \(headSize), are supported")
        }
        guard let embedding = tensors["model.embed_tokens.weight"], embedding.shape.count == 2 else {
            throw metadata.refused("the tensor token_embd.weight is missing or no matrix", "every model has one")
        }
        var members: [JSONValue.Member] = [
            .init("architectures", .array([.string(className)])), .init("model_type", .string(name)),
            .init("vocab_size", .integer(embedding.shape[0])),
            .init("hidden_size", .integer(try metadata.size(name + ".embedding_length"))),
            .init("intermediate_size", .integer(try metadata.size(name + ".feed_forward_length"))),
            .init("num_hidden_layers", .integer(try metadata.size(name + ".block_count", limit: 4096))),
            .init("num_attention_heads", .integer(heads)),
            .init(
                "num_key_value_heads",
                .integer(
                    metadata.has(name + ".attention.head_count_kv")
                        ? try metadata.size(name + ".attention.head_count_kv", limit: 1 << 16) : heads)),
            .init("head_dim", .integer(headSize)), .init("max_position_embeddings", .integer(positions)),
            .init("rms_norm_eps", .number(try metadata.realText(name + ".attention.layer_norm_rms_epsilon"))),
            .init("hidden_act", .string("silu")), .init("tie_word_embeddings", .boolean(tensors["lm_head.weight"] == nil)),
        ]
        let isBiased = tensors["model.layers.0.self_attn.q_proj.bias"] != nil
        if name == "qwen2" {
            members.append(.init("use_sliding_window", .boolean(false)))
        } else {
            members.append(.init("attention_bias", .boolean(isBiased)))
            members.append(.init("mlp_bias", .boolean(tensors["model.layers.0.mlp.gate_proj.bias"] != nil)))
        }
        let theta = metadata.has(name + ".rope.freq_base") ? try metadata.realText(name + ".rope.freq_base") : "10000.0"
        members.append(.init("rope_theta", .number(theta)))
        if let scaling = try scaling(metadata, name, headSize: headSize, theta: Double(theta) ?? 0, factors) {
            members.append(.init("rope_scaling", scaling))
        }
        func token(_ key: String) throws(Failure) -> JSONValue? {
            guard let id = try metadata.optional("tokenizer.ggml." + key), id < embedding.shape[0] else { return nil }
            return .integer(id)
        }
        members.append(.init("bos_token_id", try token("bos_token_id") ?? .null))
        // The end of a text first, which ends a training example; the end of a turn ends what is generated, too.
        var ends: [JSONValue] = []
        for key in ["eos_token_id", "eot_token_id"] {
            if let end = try token(key), !ends.contains(end) { ends.append(end) }
        }
        members.append(.init("eos_token_id", ends.isEmpty ? .null : ends.count == 1 ? ends[0] : .array(ends)))
        members.append(.init("pad_token_id", try token("padding_token_id") ?? .null))
        return .object(members)
    }

    /// `rope_scaling`, or nil where positions are as they are.
    private static func scaling(
        _ metadata: GGUFMetadata, _ name: String, headSize: Int, theta: Double, _ factors: StoredTensor?
    ) throws(Failure) -> JSONValue? {
        let key = name + ".rope.scaling.type"
        let kind = metadata.has(key) ? try metadata.text(key) : "none"
        let oldFactor = try metadata.number(name + ".rope.scale_linear")
        let factor = try metadata.number(name + ".rope.scaling.factor") ?? oldFactor ?? 1
        switch kind {
        case "none" where factors == nil && (!metadata.has(key) && factor != 1), "linear" where factors == nil:
            // llama.cpp takes a factor without a type as linear.
            return factor == 1
                ? nil : .object([.init("rope_type", .string("linear")), .init("factor", .number("\(factor)"))])
        case "none": break
        default:
            throw metadata.refused(
                "\(key) is \(kind)\(factors == nil ? "" : " beside a tensor rope_freqs.weight")",
                "only none, linear and the factors of Llama 3 are supported")
        }
        guard let factors else { return nil }
        guard factors.dtype == .f32, factors.count == headSize / 2 else {
            throw metadata.refused("the tensor rope_freqs.weight is not \(headSize / 2) floats", "every pair has one factor")
        }
        return try llama3(try factors.floats(), theta: theta, headSize: headSize, metadata)
    }

    /// Llama 3's parameters that give these factors.
    ///
    /// The file holds what each frequency is divided by, and not from what the converter computed it: low_freq_factor 1 and
    /// high_freq_factor 4 in every published model, the largest factor, and a length of pretraining that is a power of two.
    private static func llama3(
        _ factors: [Float], theta: Double, headSize: Int, _ metadata: GGUFMetadata
    ) throws(Failure) -> JSONValue? {
        if factors.allSatisfy({ $0 == 1 }) { return nil }
        let largest = Double(factors.max() ?? 1)
        for length in [8192] + (4...24).map({ 1 << $0 }) {
            let scaling = RopeScaling.llama3(
                factor: largest, lowFrequencyFactor: 1, highFrequencyFactor: 4, originalMaximumPositions: length)
            let fits = factors.enumerated().allSatisfy { pair, factor in
                let plain = 1 / pow(theta, Double(2 * pair) / Double(headSize))
                return abs(plain / scaling.scaled(plain) - Double(factor)) <= 1e-5 * Double(factor)
            }
            if fits {
                return .object([
                    .init("rope_type", .string("llama3")), .init("factor", .number("\(largest)")),
                    .init("low_freq_factor", .number("1.0")), .init("high_freq_factor", .number("4.0")),
                    .init("original_max_position_embeddings", .integer(length)),
                ])
            }
        }
        throw metadata.refused(
            "the tensor rope_freqs.weight holds factors that are not Llama 3's", "only those are supported")
    }
}

extension Architecture {
    /// Whether llama.cpp's converter turns the rows of q and k for rotations of neighbours, as it does for llama alone.
    var turnsQueriesAndKeys: Bool { self == .llama }
}

extension ModelConfiguration {
    /// Rows of a head where a GGUF file holds the rows of this linear map interleaved (`RowRun`), else nil.
    public func interleavedHeadSize(of map: String) -> Int? {
        guard architecture.turnsQueriesAndKeys, map.hasSuffix(".q_proj") || map.hasSuffix(".k_proj") else { return nil }
        return headSize
    }
}

/// A GGUF file's metadata by key, with errors that name the file, the key and the value.
struct GGUFMetadata {
    let file: GGUFFile

    func refused(_ what: String, _ why: String) -> Failure { Failure(.badData, "\(file.path): \(what), but \(why)") }

    func has(_ key: String) -> Bool { file.metadata[key] != nil }

    private func need(_ key: String) throws(Failure) -> GGUFValue {
        guard let value = file.metadata[key] else { throw refused("\(key) is missing", "it is needed; convert the model again") }
        return value
    }

    func text(_ key: String) throws(Failure) -> String {
        guard case .text(let text) = try need(key) else { throw refused("\(key) is no text", "text is expected") }
        return text
    }

    /// A size of at least 1, as of `config.json` (`KeyReader.size`).
    func size(_ key: String, limit: Int = 1 << 24) throws(Failure) -> Int {
        if case .array = try need(key) { throw refused("\(key) is an array", "only layers that are all alike are supported") }
        guard case .integer(let size) = try need(key), 1...limit ~= size else {
            throw refused("\(key) is no size", "a whole number between 1 and \(limit) is expected")
        }
        return size
    }

    /// A whole number from 0, or nil where the key is missing.
    func optional(_ key: String) throws(Failure) -> Int? {
        guard let value = file.metadata[key] else { return nil }
        guard case .integer(let number) = value, number >= 0 else {
            throw refused("\(key) is no whole number from 0", "it is wrong; convert the model again")
        }
        return number
    }

    /// A number or a flag, as 0 and 1; nil where the key is missing.
    func number(_ key: String) throws(Failure) -> Double? {
        switch file.metadata[key] {
        case nil: return nil
        case .integer(let value): return Double(value)
        case .float(let value): return Double("\(value)")
        case .double(let value): return value
        case .boolean(let value): return value ? 1 : 0
        default: throw refused("\(key) is no number", "a number is expected")
        }
    }

    /// The shortest text of a number: that of 1e-05 in single precision is the same as of 1e-05 in double precision.
    func realText(_ key: String) throws(Failure) -> String {
        switch try need(key) {
        case .float(let value) where value.isFinite: return "\(value)"
        case .double(let value) where value.isFinite: return "\(value)"
        default: throw refused("\(key) is no finite number", "a number is expected")
        }
    }

    /// False or the default where the key is missing.
    func flag(_ key: String, default standard: Bool) throws(Failure) -> Bool {
        guard let value = file.metadata[key] else { return standard }
        guard case .boolean(let flag) = value else { throw refused("\(key) is no flag", "true or false is expected") }
        return flag
    }

    func array(_ key: String) throws(Failure) -> GGUFArray {
        guard case .array(let array) = try need(key) else { throw refused("\(key) is no array", "one is expected") }
        return array
    }
}
