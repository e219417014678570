/// Fuzz target `adapter`: a PEFT folder.
///
/// The input is `adapter_config.json`, the header's text of the factors, that of `head.safetensors` and `labels.json`, each ended
/// by a zero byte (the last two empty where there is no such file), and data, which both files repeat as they need. What is
/// accepted must become the weights of a model that has its maps, be written and read again, and, without a head and for the
/// maps of a llama, become a GGUF file.

import Adapters
import Checkpoints
import Glibc
import Primitives

extension FuzzTarget {
    static let adapter = FuzzTarget(name: "adapter", seeds: AdapterFuzz.seeds, run: AdapterFuzz.run)
}

private enum AdapterFuzz {
    /// A llama whose maps the seeds adapt.
    static let base: ModelConfiguration = {
        let text =
            #"{"model_type":"llama","hidden_size":4,"intermediate_size":3,"num_hidden_layers":2,"num_attention_heads":2,"num_key_value_heads":1,"head_dim":2,"vocab_size":2,"max_position_embeddings":8,"rms_norm_eps":1e-05,"hidden_act":"silu"}"#
        guard let json = try? JSONValue(parsing: text.utf8), let base = try? ModelConfiguration(json: json, path: "base") else {
            fatalError("the base of the adapters is refused")
        }
        return base
    }()

    @Sendable static func seeds() -> [[UInt8]] {
        let prefix = "base_model.model."
        func configuration(_ task: String, _ more: String) -> [UInt8] {
            Array(
                (#"{"peft_type":"LORA","task_type":"\#(task)","r":2,"lora_alpha":4,"bias":"none","target_modules":["q_proj"]"#
                    + more
                    + "}").utf8)
        }
        func factors(_ maps: [LinearMap], head: [(String, [Int])] = []) -> [UInt8] {
            var tensors = FuzzPlace.Tensors()
            for map in maps {
                tensors.add(prefix + map.name + ".lora_A.weight", [2, map.inputs])
                tensors.add(prefix + map.name + ".lora_B.weight", [map.outputs, 2])
            }
            for (name, shape) in head { tensors.add(prefix + name, shape) }
            return tensors.header
        }
        func seed(_ configuration: [UInt8], _ factors: [UInt8], head: [UInt8] = [], labels: String = "") -> [UInt8] {
            let texts = [configuration, factors, head, Array(labels.utf8)]
            return texts.flatMap { $0 + [0] } + [0x3C, 0x3C, 0x3C, 0x3D, 0x3C, 0xBC]
        }
        let llama = base.linearMaps.filter { ["q_proj", "k_proj", "down_proj"].contains($0.moduleName) }
        var seeds = [
            "", #","use_rslora":true"#, #","rank_pattern":{"q_proj":2},"alpha_pattern":{".*q_proj":8}"#,
            #","alpha_pattern":{"layers\\.(0|1)\\.(self_attn|mlp)\\.[a-z]+_proj":8}"#,
            #","alpha_pattern":{"^model.layers.\\d+.mlp.(?:up|down)_proj$":3.5,"(\\w+\\.?)+!":8,"k_proj":0}"#,
        ].map { seed(configuration("CAUSAL_LM", $0), factors(llama)) }
        let encoder = [LinearMap(name: "bert.encoder.layer.0.attention.self.query", outputs: 3, inputs: 3)]
        var head = FuzzPlace.Tensors()
        head.add("classifier.weight", [2, 3])
        head.add("classifier.bias", [2])
        seeds.append(
            seed(
                configuration("SEQ_CLS", #","modules_to_save":["classifier"]"#),
                factors(encoder, head: [("classifier.weight", [2, 3]), ("classifier.bias", [2])]), labels: #"["a","b"]"#))
        seeds.append(
            seed(
                configuration("SEQ_CLS", #","modules_to_save":["classifier","score"]"#),
                factors(
                    encoder,
                    head: [
                        ("classifier.dense.weight", [3, 3]), ("classifier.dense.bias", [3]),
                        ("classifier.out_proj.weight", [2, 3]), ("classifier.out_proj.bias", [2]),
                    ])))
        seeds.append(
            seed(configuration("FEATURE_EXTRACTION", ""), factors(encoder), head: head.header, labels: #"["a","b"]"#))
        return seeds
    }

    @Sendable static func run(_ input: [UInt8]) -> String? {
        let (texts, data) = fuzzParts(input, texts: 4)
        let folder = FuzzPlace.folder
        for name in ["head.safetensors", "labels.json"] { unlink(folder + "/" + name) }
        guard FuzzPlace.write(texts[0], to: folder + "/adapter_config.json"),
            FuzzPlace.write(
                FuzzPlace.safetensors(header: texts[1], data: data), to: folder + "/adapter_model.safetensors"),
            texts[2].isEmpty
                || FuzzPlace.write(FuzzPlace.safetensors(header: texts[2], data: data), to: folder + "/head.safetensors"),
            texts[3].isEmpty || FuzzPlace.write(texts[3], to: folder + "/labels.json")
        else { return FuzzPlace.unwritable }
        do throws(Failure) {
            let adapter = try PEFTAdapter(folder: folder)
            let maps = adapter.entries.map { LinearMap(name: $0.map, outputs: $0.outputs, inputs: $0.inputs) }
            let weights = try adapter.weights(maps: maps)
            precondition(exportedFactors(weights: weights).count == adapter.entries.count)
            precondition(exportedHead(weights: weights).count == adapter.head.count)
            let copy = folder + ".copy"
            try adapter.write(folder: copy, maps: maps)
            let again = try PEFTAdapter(folder: copy)
            precondition(again.entries.count == adapter.entries.count && again.head == adapter.head)
            precondition(again.labels == adapter.labels)
            guard adapter.head.isEmpty, (try? adapter.entries(for: base.linearMaps)) != nil else { return nil }
            try adapter.writeGGUF(path: folder + ".gguf", configuration: base, name: "fuzz")
            let file = try GGUFFile(path: folder + ".gguf")
            precondition(file.tensors.count == 2 * adapter.entries.count, "a GGUF adapter lacks tensors")
        } catch {
            precondition(!error.message.isEmpty)
            return error.message
        }
        return nil
    }
}
