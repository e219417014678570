/// Fuzz target `checkpoint`: `config.json`, an index, and a safetensors file, in every form of weights that we read.
///
/// The input is the configuration, the index (empty for a model in one file) and the header's text, each ended by a zero byte,
/// and the data. What is accepted must hash, every tensor that a model reads must be there, and every linear map must decode.

import Checkpoints
import Glibc
import LinearAlgebra
import Primitives
import Quantization

extension FuzzTarget {
    static let checkpoint = FuzzTarget(name: "checkpoint", seeds: CheckpointFuzz.seeds, run: CheckpointFuzz.run)
}

private enum CheckpointFuzz {
    /// How a linear map's weight is stored.
    enum Form: Equatable {
        case floats
        case fourBit(String, nested: Bool)
        case bytes

        /// What a `config.json` says of it.
        var configuration: String {
            switch self {
            case .floats: ""
            case .fourBit(let type, _):
                #","quantization_config":{"quant_method":"bitsandbytes","load_in_4bit":true,"bnb_4bit_quant_type":"\#(type)"}"#
            case .bytes: #","quantization_config":{"load_in_8bit":true,"llm_int8_skip_modules":["lm_head"]}"#
            }
        }
    }

    private static func add(_ map: LinearMap, _ form: Form, to tensors: inout FuzzPlace.Tensors) {
        let name = map.name + ".weight"
        let shape = [map.outputs, map.inputs]
        let count = map.outputs * map.inputs
        switch form {
        case .floats: tensors.add(name, shape)
        case .bytes:
            tensors.add(name, "I8", shape, (0..<count).map { UInt8(truncatingIfNeeded: 0x90 + 7 * $0) })
            tensors.add(map.name + ".SCB", [map.outputs])
        case .fourBit(let type, let nested):
            let state =
                #"{"quant_type":"\#(type)","blocksize":64,"dtype":"float32","shape":\#(shape)"#
                + (nested ? #","nested_blocksize":256,"nested_dtype":"float32","nested_offset":0.5}"# : "}")
            let blocks = (count + 63) / 64
            tensors.add(name, "U8", [(count + 1) / 2, 1], [UInt8](repeating: 0x3C, count: (count + 1) / 2))
            if nested {
                tensors.add(name + ".absmax", "U8", [blocks], [UInt8](repeating: 0x3C, count: blocks))
                tensors.add(name + ".nested_absmax", [(blocks + 255) / 256])
                tensors.add(name + ".nested_quant_map", [256])
            } else {
                tensors.add(name + ".absmax", [blocks])
            }
            tensors.add(name + ".quant_map", [16])
            tensors.add(name + ".quant_state.bitsandbytes__" + type, "U8", [state.utf8.count], Array(state.utf8))
        }
    }

    /// - Parameters:
    ///   - form: of the first linear map; the others are floats
    ///   - labels: outputs of a classifier's head; 0 for none
    private static func seed(_ configuration: String, _ form: Form = .floats, labels: Int = 0, hasIndex: Bool = false) -> [UInt8]
    {
        let text = "{" + configuration + form.configuration + "}"
        guard let json = try? JSONValue(parsing: text.utf8), let model = try? ModelConfiguration(json: json, path: "seed") else {
            fatalError("the configuration of a seed is refused")
        }
        var tensors = FuzzPlace.Tensors()
        // The form first, so that its data are in place where the fuzzer cuts an input short.
        for (index, map) in model.linearMaps.enumerated() { add(map, index == 0 ? form : .floats, to: &tensors) }
        for (name, shape) in model.denseTensors { tensors.add(name, shape) }
        for map in labels > 0 ? model.head(labelCount: labels) : [] {
            tensors.add(map.name + ".weight", [map.outputs, map.inputs])
            tensors.add(map.name + ".bias", [map.outputs])
        }
        let index =
            hasIndex
            ? #"{"weight_map":{"# + tensors.names.map { #""\#($0)":"a.safetensors""# }.joined(separator: ",") + "}}" : ""
        return Array(text.utf8) + [0] + Array(index.utf8) + [0] + tensors.header + [0] + tensors.data
    }

    @Sendable static func seeds() -> [[UInt8]] {
        let llama =
            #""architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":2,"intermediate_size":1,"num_hidden_layers":1,"num_attention_heads":1,"num_key_value_heads":1,"vocab_size":2,"max_position_embeddings":8,"rms_norm_eps":1e-05,"hidden_act":"silu","tie_word_embeddings":true"#
        let qwen =
            #""architectures":["Qwen3ForCausalLM"],"model_type":"qwen3","hidden_size":2,"intermediate_size":1,"num_hidden_layers":1,"num_attention_heads":1,"num_key_value_heads":1,"head_dim":2,"vocab_size":2,"max_position_embeddings":8,"rms_norm_eps":1e-05,"hidden_act":"silu","tie_word_embeddings":false,"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":16}"#
        func encoder(_ family: String, _ name: String) -> String {
            #""architectures":["\#(name)"],"model_type":"\#(family)","hidden_size":2,"intermediate_size":1,"num_hidden_layers":1,"num_attention_heads":1,"vocab_size":3,"type_vocab_size":1,"max_position_embeddings":4,"layer_norm_eps":1e-12,"hidden_act":"gelu","pad_token_id":0,"id2label":{"0":"a","1":"b"}"#
        }
        return [
            seed(llama, .fourBit("nf4", nested: false)), seed(llama, .fourBit("nf4", nested: true)),
            seed(llama, .fourBit("fp4", nested: false)), seed(llama, .bytes), seed(llama, hasIndex: true), seed(qwen),
            seed(encoder("bert", "BertForSequenceClassification"), labels: 2),
            seed(encoder("bert", "BertForSequenceClassification"), .fourBit("nf4", nested: true), labels: 2),
            seed(encoder("roberta", "RobertaForSequenceClassification"), labels: 2),
            seed(encoder("roberta", "RobertaForMaskedLM"), .bytes), seed(encoder("bert", "BertModel")),
        ]
    }

    @Sendable static func run(_ input: [UInt8]) -> String? {
        let (texts, data) = fuzzParts(input, texts: 3)
        let folder = FuzzPlace.folder
        let weights = FuzzPlace.safetensors(header: texts[2], data: data)
        for name in ["model.safetensors", "model.safetensors.index.json"] { unlink(folder + "/" + name) }
        guard FuzzPlace.write(texts[0], to: folder + "/config.json"),
            FuzzPlace.write(weights, to: folder + (texts[1].isEmpty ? "/model.safetensors" : "/a.safetensors")),
            texts[1].isEmpty || FuzzPlace.write(texts[1], to: folder + "/model.safetensors.index.json")
        else { return FuzzPlace.unwritable }
        do throws(Failure) {
            let checkpoint = try CheckpointFolder(path: folder)
            _ = try checkpoint.baseDigest(cache: nil)
            let configuration = checkpoint.configuration
            for (name, shape) in configuration.denseTensors {
                let values = try checkpoint.tensor(name).floats()
                precondition(values.count == shape.reduce(1, *), "a tensor has another shape")
            }
            for map in checkpoint.headLabelCount.map(configuration.head) ?? [] {
                let weight = try checkpoint.tensor(map.name + ".weight").floats()
                let bias = try checkpoint.tensor(map.name + ".bias").floats()
                precondition(weight.count == map.outputs * map.inputs && bias.count == map.outputs)
            }
            for map in configuration.linearMaps {
                _ = try QuantizedMatrix.load(map: map, from: checkpoint, as: .stored).decoded()
                if !checkpoint.isQuantized(map.name) {
                    _ = try QuantizedMatrix.load(map: map, from: checkpoint, as: .int8)
                }
            }
        } catch {
            precondition(!error.message.isEmpty)
            return error.message
        }
        return nil
    }
}
