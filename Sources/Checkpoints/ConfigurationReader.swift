/// Reads `config.json` into a `ModelConfiguration`; whatever would be computed wrongly is refused by name.

import Primitives

extension ModelConfiguration {
    /// - Throws: `Failure(.badData)` that names the file, the key and its value.
    public init(folder: String) throws(Failure) {
        let path = folder + "/config.json"
        guard fileExists(path) else {
            throw Failure(
                .missingInput, "\(folder) holds no config.json: --model takes a Hugging Face model folder or a GGUF file")
        }
        let generationPath = folder + "/generation_config.json"
        try self.init(
            json: try readJSON(path), path: path,
            generation: fileExists(generationPath) ? try readJSON(generationPath) : nil)
    }

    public init(json: JSONValue, path: String, generation: JSONValue? = nil) throws(Failure) {
        let reader = try KeyReader(json: json, path: path)
        let family = try reader.text("model_type")
        switch family {
        case "llama", "mistral": architecture = .llama
        case "qwen2": architecture = .qwen2
        case "qwen3": architecture = .qwen3
        case "bert", "roberta":
            self = try Self(encoder: reader, family == "bert" ? .bert : .roberta)
            return
        default:
            throw Failure(
                .badData,
                "\(path): model_type \(family) is not supported; the supported ones are llama, mistral, qwen2, qwen3, bert, roberta"
            )
        }
        if let names = json["architectures"]?.elements?.compactMap(\.text), let name = names.first, !name.hasSuffix("ForCausalLM")
        {
            throw reader.refused(
                "architectures is \(name)", "of \(family) only causal language models (…ForCausalLM) are supported")
        }
        vocabularySize = try reader.size("vocab_size")
        hiddenSize = try reader.size("hidden_size")
        intermediateSize = try reader.size("intermediate_size")
        layerCount = try reader.size("num_hidden_layers", limit: 4096)
        headCount = try reader.size("num_attention_heads", limit: 1 << 16)
        keyValueHeadCount =
            family == "llama" && reader.value("num_key_value_heads") == nil
            ? headCount : try reader.size("num_key_value_heads", limit: 1 << 16)
        if reader.value("head_dim") != nil {
            headSize = try reader.size("head_dim", limit: 1 << 16)
        } else {
            guard family != "qwen3" || hiddenSize == 128 * headCount else {
                throw reader.refused("head_dim is missing", "qwen3 needs it")
            }
            guard hiddenSize % headCount == 0 else {
                throw reader.refused(
                    "hidden_size \(hiddenSize) is no multiple of num_attention_heads \(headCount)", "head_dim is needed then")
            }
            headSize = hiddenSize / headCount
        }
        guard headCount % keyValueHeadCount == 0 else {
            throw reader.refused(
                "num_attention_heads \(headCount) is no multiple of num_key_value_heads \(keyValueHeadCount)", "the file is wrong"
            )
        }
        guard headSize % 2 == 0 else { throw reader.refused("head_dim is \(headSize)", "rotary positions need an even one") }
        maximumPositions = try reader.size("max_position_embeddings")
        let epsilon = try reader.real("rms_norm_eps")
        guard epsilon > 0, epsilon < 1 else {
            throw reader.refused("rms_norm_eps is \(epsilon)", "it is a small positive number")
        }
        rmsNormEpsilon = Float(epsilon)
        tieWordEmbeddings = try reader.flag("tie_word_embeddings")

        let activation = try reader.text("hidden_act")
        guard activation == "silu" || activation == "swish" else {
            throw reader.refused("hidden_act is \(activation)", "only silu is supported")
        }
        let attentionFlag = try reader.flag("attention_bias")
        attentionBias = family == "qwen2" || (family != "mistral" && attentionFlag)
        let mlpFlag = try reader.flag("mlp_bias")
        mlpBias = family == "llama" && mlpFlag
        try Self.refuseSlidingWindow(reader, family: family, layers: layerCount, positions: maximumPositions)
        (ropeTheta, ropeScaling) = try Self.rope(reader)
        quantization = try Self.storedQuantization(reader)

        func token(_ value: JSONValue?, _ key: String, size: Int) throws(Failure) -> Int? {
            guard let value, !value.isNull else { return nil }
            guard let id = value.int, 0..<size ~= id else {
                throw reader.refused("\(key) is \(value.compact)", "it is no token id below vocab_size \(size)")
            }
            return id
        }
        beginTokens = try token(json["bos_token_id"], "bos_token_id", size: vocabularySize)
        endTokens = []
        for value in [json["eos_token_id"], generation?["eos_token_id"]] {
            for entry in value?.elements ?? [value ?? .null] {
                if let id = try token(entry, "eos_token_id", size: vocabularySize), !endTokens.contains(id) {
                    endTokens.append(id)
                }
            }
        }
        // Some converted checkpoints say -1 where there is none.
        padToken = json["pad_token_id"]?.int.flatMap { [vocabularySize] in 0..<vocabularySize ~= $0 ? $0 : nil }
    }

    private static func refuseSlidingWindow(_ reader: KeyReader, family: String, layers: Int, positions: Int) throws(Failure) {
        func refuse(_ what: String) -> Failure { reader.refused(what, "sliding-window attention is not supported") }
        if family == "mistral" {
            // An absent key means Mistral's default of 4096; a window as long as the positions changes nothing.
            let key = reader.json["sliding_window"]
            if key?.isNull == true { return }
            let window = key?.int ?? 4096
            if window < positions { throw refuse("sliding_window is \(window)") }
        } else if family != "llama" {
            if let types = reader.json["layer_types"]?.elements {
                for type in types where type.text != "full_attention" { throw refuse("layer_types holds \(type.compact)") }
                return
            }
            guard try reader.flag("use_sliding_window") else { return }
            let first = reader.json["max_window_layers"]?.int ?? 28
            let window = reader.json["sliding_window"]?.int ?? 4096
            if first < layers, window < positions { throw refuse("use_sliding_window is true with sliding_window \(window)") }
        }
    }

    /// Both spellings: `rope_parameters`, and `rope_theta` with `rope_scaling`.
    private static func rope(_ reader: KeyReader) throws(Failure) -> (Double, RopeScaling?) {
        let key = reader.value("rope_parameters") != nil ? "rope_parameters" : "rope_scaling"
        let section = reader.value(key)
        if let section, section.members == nil { throw reader.refused("\(key) is \(section.compact)", "an object is expected") }
        let inner = try KeyReader(json: section ?? .object([]), path: reader.path, prefix: key + ".")
        if let nested = section?.members?.first(where: { $0.value.members != nil }) {
            throw reader.refused("\(key) holds \(nested.key)", "rotary positions by layer type are not supported")
        }
        for part in [reader, inner] {
            if part.value("partial_rotary_factor") != nil {
                let share = try part.real("partial_rotary_factor")
                guard share == 1 else {
                    throw part.refused("partial_rotary_factor is \(share)", "partial rotary positions are not supported")
                }
            }
        }
        var theta = 10000.0
        if inner.value("rope_theta") != nil {
            theta = try inner.real("rope_theta")
        } else if reader.value("rope_theta") != nil {
            theta = try reader.real("rope_theta")
        }
        guard theta > 0 else { throw reader.refused("rope_theta is \(theta)", "it is a positive number") }
        guard section != nil else { return (theta, nil) }
        let type =
            inner.value("rope_type") != nil
            ? try inner.text("rope_type") : inner.value("type") != nil ? try inner.text("type") : "default"
        func positive(_ key: String) throws(Failure) -> Double {
            let value = try inner.real(key)
            guard value > 0 else { throw inner.refused("\(key) is \(value)", "it is a positive number") }
            return value
        }
        switch type {
        case "default": return (theta, nil)
        case "linear": return (theta, .linear(factor: try positive("factor")))
        case "llama3":
            let low = try positive("low_freq_factor")
            let high = try positive("high_freq_factor")
            guard high > low else {
                throw inner.refused("high_freq_factor is \(high)", "it must be above low_freq_factor \(low)")
            }
            return (
                theta,
                .llama3(
                    factor: try positive("factor"), lowFrequencyFactor: low, highFrequencyFactor: high,
                    originalMaximumPositions: try inner.size("original_max_position_embeddings"))
            )
        default:
            throw inner.refused("rope_type is \(type)", "only default, linear and llama3 are supported")
        }
    }

    static func storedQuantization(_ reader: KeyReader) throws(Failure) -> StoredQuantization? {
        guard let section = reader.value("quantization_config") else { return nil }
        let inner = try KeyReader(json: section, path: reader.path, prefix: "quantization_config.")
        let method = inner.value("quant_method") == nil ? "bitsandbytes" : try inner.text("quant_method")
        guard method == "bitsandbytes" else {
            throw inner.refused("quant_method is \(method)", "only bitsandbytes is supported")
        }
        let skipped = section["llm_int8_skip_modules"]?.elements?.compactMap(\.text) ?? []
        if section["load_in_8bit"]?.bool ?? section["_load_in_8bit"]?.bool ?? false {
            return StoredQuantization(type: "int8", skippedModules: skipped)
        }
        let fourBits = section["load_in_4bit"]?.bool ?? section["_load_in_4bit"]?.bool ?? false
        let type = inner.value("bnb_4bit_quant_type") == nil ? "fp4" : try inner.text("bnb_4bit_quant_type")
        guard fourBits, type == "nf4" || type == "fp4" else {
            throw inner.refused(
                fourBits ? "bnb_4bit_quant_type is \(type)" : "neither load_in_4bit nor load_in_8bit is true",
                "only bitsandbytes nf4, fp4 and LLM.int8 are supported")
        }
        return StoredQuantization(type: type, skippedModules: skipped)
    }
}

/// The keys of one JSON object, with errors that name the file, the key and the value.
struct KeyReader {
    let json: JSONValue
    let path: String
    let prefix: String

    init(json: JSONValue, path: String, prefix: String = "") throws(Failure) {
        guard json.members != nil else { throw Failure(.badData, "\(path) is not a JSON object; fetch the file again") }
        self.json = json
        self.path = path
        self.prefix = prefix
    }

    func refused(_ what: String, _ why: String) -> Failure { Failure(.badData, "\(path): \(prefix)\(what), but \(why)") }

    /// Nil where the key is missing or null.
    func value(_ key: String) -> JSONValue? { json[key].flatMap { $0.isNull ? nil : $0 } }

    private func need(_ key: String) throws(Failure) -> JSONValue {
        guard let value = value(key) else { throw refused("\(key) is missing", "it is needed; fetch the file again") }
        return value
    }

    func text(_ key: String) throws(Failure) -> String {
        let value = try need(key)
        guard let text = value.text else { throw refused("\(key) is \(value.compact)", "text is expected") }
        return text
    }

    func real(_ key: String) throws(Failure) -> Double {
        let value = try need(key)
        guard let number = value.double else { throw refused("\(key) is \(value.compact)", "a number is expected") }
        return number
    }

    /// A size of at least 1. The limit keeps every product of two sizes and a layer count within an Int.
    func size(_ key: String, limit: Int = 1 << 24) throws(Failure) -> Int {
        let value = try need(key)
        guard let size = value.int, 1...limit ~= size else {
            throw refused("\(key) is \(value.compact)", "a whole number between 1 and \(limit) is expected")
        }
        return size
    }

    /// False where the key is missing.
    func flag(_ key: String) throws(Failure) -> Bool {
        guard let value = value(key) else { return false }
        guard let flag = value.bool else { throw refused("\(key) is \(value.compact)", "true or false is expected") }
        return flag
    }
}
