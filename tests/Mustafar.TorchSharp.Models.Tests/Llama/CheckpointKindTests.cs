using System.Text;
using System.Text.Json.Nodes;
using Mustafar.Examples.Llama.Commands;
using Mustafar.Models.Checkpoint;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;

namespace Mustafar.Tests.Llama;

/// <summary>What is given in place of a checkpoint or of one of its files is named as what it is, with what to do.</summary>
[TestFixture]
public sealed class CheckpointKindTests
{
    private const string Pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 523496\n";

    private TemporaryDirectory _directory = null!;

    [SetUp]
    public void MakeDirectory() => _directory = new TemporaryDirectory().WithTinyCheckpoint();

    [TearDown]
    public void DeleteDirectory() => _directory.Dispose();

    [TestCase("quantization_config", """{ "quant_method": "fp8", "fmt": "e4m3" }""", "'quantization_config' with quant_method \"fp8\" is not supported")]
    [TestCase("rope_parameters", """{ "full_attention": { "rope_type": "yarn" }, "sliding_attention": {} }""", "'rope_parameters' with a separate set for 'full_attention' is not supported")]
    [TestCase("rope_scaling", """{ "rope_type": "default", "mrope_section": [8, 12, 12] }""", "'mrope_section' = [8,12,12] with RoPE type 'default' is not supported")]
    [TestCase("rope_scaling", """["yarn", 4.0]""", "expected an object as 'rope_scaling', the parameters of RoPE, but got [\"yarn\",4.0].")]
    [TestCase("rope_scaling", """{ "rope_type": "yarn", "factor": 4.0 }""", "RoPE type 'yarn' is not supported; expected 'default' or 'llama3'.")]
    [TestCase("architectures", """{ "a": [1, 2, 3], "b": "LlamaForCausalLM LlamaForCausalLM LlamaForCausalLM LlamaForCausalLM" }""", "LlamaForCausalLM LlamaFor….")]
    [TestCase("eos_token_id", """[[1, 2]]""", "expected token ids as 'eos_token_id', but got [[1,2]]")]
    [TestCase("rms_norm_eps", "1e999", "expected a finite 'rms_norm_eps'")]
    [TestCase("head_dim", "40", "'head_dim' = 40 is not supported by the compressed cache, which supports 64, 80, 96, 128, 256; a dense cache (--attention dense) supports any even one")]
    public void AValueOfSeveralLinesIsQuotedOnOneAndTheRestOfTheSentenceIsThere(string key, string value, string expected)
    {
        Change("config.json", root => root[key] = JsonNode.Parse(value));
        Refused(expected, $"{_directory.File("config.json")}: ");
    }

    [TestCase("hidden_act", "expected whole characters in 'hidden_act', but got half a surrogate pair")]
    [TestCase("\\ud800", "expected whole characters in a key after 'rope_theta', but got half a surrogate pair")]
    public void HalfASurrogatePairIsFoundWithItsPlace(string key, string expected)
    {
        string path = _directory.File("config.json");
        string text = File.ReadAllText(path).Replace("\"hidden_act\": \"silu\"", $"\"{key}\": \"{(key == "hidden_act" ? "\\ud800" : "x")}\"");
        File.WriteAllText(path, text);
        Refused(expected, path);
        File.WriteAllBytes(path, [.. "{ \"a\": \""u8, 0xFF, .. "\" }"u8]);
        Refused("expected UTF-8", path);
    }

    [TestCase("config.json")]
    [TestCase("model.safetensors")]
    [TestCase("tokenizer.json")]
    public void AGitLfsPointerIsNamed(string file)
    {
        File.WriteAllText(_directory.File(file), Pointer);
        Refused($"{file}: this is a Git LFS pointer, not the file itself; run 'git lfs pull'");
    }

    [Test]
    public void AGitLfsPointerInPlaceOfAShardIsNamed()
    {
        string shard = _directory.File("model-00001-of-00001.safetensors");
        string[] names = [.. SafetensorsHeaderOf(_directory.File("model.safetensors"))];
        File.Delete(_directory.File("model.safetensors"));
        File.WriteAllText(shard, Pointer);
        JsonObject map = [];
        foreach (string name in names)
        {
            map[name] = Path.GetFileName(shard);
        }

        File.WriteAllText(_directory.File("model.safetensors.index.json"), new JsonObject { ["weight_map"] = map }.ToJsonString());
        Refused($"{shard}: this is a Git LFS pointer");
    }

    [Test]
    public void AnUnsupportedDtypeOfWeightsIsNamed()
    {
        SafetensorsText.Rewrite(_directory.File("model.safetensors"), header => header.Replace("\"F32\"", "\"F8_E4M3\""));
        Refused("expected one of the dtypes F64", "'F8_E4M3'");
    }

    [Test]
    public void AHeadDimIsRefusedBeforeTheWeightsAreReadAndADenseCacheTakesIt()
    {
        using TemporaryDirectory other = new TemporaryDirectory().WithTinyCheckpoint(config => config["head_dim"] = 40);
        (int code, _, string error) = Run("generate", "--model", other.Path, "--prompt", "hi", "--attention", "dense", "--max-tokens", "2");
        Assert.That(code, Is.Zero, error);
        File.Delete(other.File("model.safetensors"));
        (code, _, error) = Run("generate", "--model", other.Path, "--prompt", "hi");
        Assert.That(code, Is.EqualTo(1));
        Assert.That(error, Does.Contain("config.json: 'head_dim' = 40"));
    }

    // What the message says is what the library does.
    [Test]
    public void TheHeadDimsThatAreTakenAreThoseOfTheCache()
    {
        for (int headDim = 2; headDim <= 320; headDim += 2)
        {
            Assert.That(Takes(headDim, () => Config(headDim).CheckCompressible(new MustafarOptions(), "config.json")), Is.EqualTo(Takes(
                headDim, () => new MustafarCache(1, new() { NumKvHeads = 1, HeadDim = headDim }, TorchSharp.torch.ScalarType.Float32).Dispose())), $"{headDim}");
        }

        LlamaConfig Config(int headDim) => LlamaConfig.Load(_directory.File("config.json")) with { HeadDim = headDim };

        static bool Takes(int headDim, Action use)
        {
            try
            {
                use();
                return true;
            }
            catch (Exception exception) when (exception is UnsupportedModelException or ArgumentException or NotSupportedException)
            {
                return false;
            }
        }
    }

    [Test]
    public void WhatIsNoCheckpointIsNamed()
    {
        using TemporaryDirectory other = new();
        string gguf = other.File("model.gguf");
        File.WriteAllText(gguf, "GGUF");
        string snapshot = other.File("models--a--b/snapshots/0123");
        Directory.CreateDirectory(snapshot);
        File.WriteAllText(Path.Combine(snapshot, "config.json"), "{}");
        Directory.CreateDirectory(other.File("empty"));
        (string Path, string Expected)[] cases =
        [
            (gguf, "this is a GGUF file, which is not supported"),
            (other.Path, "'model.gguf' is a GGUF file"),
            (other.File("models--a--b"), $"this is a folder of the Hugging Face cache; the checkpoints are below it: pass '{snapshot}'"),
            (_directory.File("model.safetensors"), $"pass the directory, '{_directory.Path}'"),
            (other.File("empty"), "but there is no config.json"),
            ("meta-llama/Llama-3.2-1B", "hf download meta-llama/Llama-3.2-1B --local-dir DIR"),
            (other.File("none"), "the directory doesn't exist."),
        ];
        foreach ((string path, string expected) in cases)
        {
            (int code, _, string error) = Run("generate", "--model", path);
            Assert.That(code, Is.EqualTo(1));
            Assert.That(error, Does.StartWith($"error: --model: {path}: ").And.Contain(expected));
        }
    }

    [TestCase("pytorch_model.bin", "convert it to safetensors")]
    [TestCase("model.gguf", "convert it to safetensors")]
    [TestCase("consolidated.safetensors", "name weights in a single file model.safetensors")]
    public void WeightsOfAnotherFormatOrNameAreNamed(string name, string expected)
    {
        File.Move(_directory.File("model.safetensors"), _directory.File(name));
        Refused(expected, $"there is '{name}'");
    }

    [Test]
    [Platform("Linux")]
    public void APipeIsRefusedInsteadOfWaitedFor([Values("config.json", "model.safetensors", "generation_config.json")] string file)
    {
        File.Delete(_directory.File(file));
        NamedPipe.Make(_directory.File(file));
        Refused($"{file}: expected a regular file, but it is a named pipe");
    }

    [Test]
    public void AHugeConfigIsRefusedByItsSize()
    {
        using (FileStream stream = File.OpenWrite(_directory.File("config.json")))
        {
            stream.SetLength(3L << 30); // sparse
        }

        Refused("config.json: expected at most 268435456 bytes, but it has 3221225472");
    }

    [TestCase("vocab_size", 2147483647)]
    [TestCase("hidden_size", 1 << 30)]
    [TestCase("intermediate_size", 2147483647)]
    [TestCase("num_hidden_layers", 2147483647)]
    [TestCase("num_attention_heads", 1 << 30)]
    public void SizesThatTheWeightsDoNotHaveAskForNoMemory(string key, int value)
    {
        Change("config.json", root => root[key] = value);
        Assert.That(() => LanguageModel.Load(_directory.Path).Dispose(), Throws.TypeOf<CheckpointException>());
    }

    [Test]
    public void IdsAreScoredWithoutATokenizer()
    {
        File.Delete(_directory.File("tokenizer.json"));
        File.WriteAllText(_directory.File("ids"), "1 2 3");
        (int code, _, string error) = Run("score", "--model", _directory.Path, "--ids-file", _directory.File("ids"));
        Assert.That(code, Is.Zero, error);
        Assert.That(Run("score", "--model", _directory.Path, "--file", _directory.File("ids")).Error, Does.Contain("tokenizer.json"));
    }

    [TestCase("""{ "do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.1 }""", 0.7, 20, 0.8, 0.1, 1)]
    [TestCase("""{ "do_sample": true, "repetition_penalty": 1.05 }""", 1, 50, 1, 0, 1.05)]
    [TestCase("""{ "do_sample": false, "temperature": 0.7, "min_p": 0.1, "repetition_penalty": 1.05 }""", 0, 0, 1, 0, 1.05)]
    [TestCase("""{ "temperature": null, "top_p": 0.5, "repetition_penalty": null }""", 0, 0, 1, 0, 1)]
    public void GenerationConfigGivesTheSampling(string json, double temperature, int topK, double topP, double minP, double repetitionPenalty)
    {
        File.WriteAllText(_directory.File("generation_config.json"), json);
        Assert.That(
            GenerationConfig.Load(_directory.Path).Sampling,
            Is.EqualTo(new SamplingParameters
            {
                Temperature = temperature, TopK = topK, TopP = topP, MinP = minP, RepetitionPenalty = repetitionPenalty,
            }));
    }

    [Test]
    public void TheCommandLineGoesBeforeGenerationConfigAndWhatHasNoEffectIsTold()
    {
        string[] args = ["generate", "--model", _directory.Path, "--prompt", "hi", "--max-tokens", "24"];
        string likeliest = Run(args).Output.Split("\n\n")[0];
        File.WriteAllText(
            _directory.File("generation_config.json"), """{ "do_sample": true, "temperature": 5.0, "top_k": 0, "no_repeat_ngram_size": 3 }""");
        (int code, string drawn, string error) = Run(args);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.Zero);
            Assert.That(drawn.Split("\n\n")[0], Is.Not.EqualTo(likeliest));
            Assert.That(error, Does.Contain("warning: generation_config.json: 'no_repeat_ngram_size' = 3 is not supported and has no effect"));
            Assert.That(Run([.. args, "--temperature", "0"]).Output.Split("\n\n")[0], Is.EqualTo(likeliest));
        }

        File.WriteAllText(_directory.File("generation_config.json"), """{ "do_sample": true, "temperature": -1 }""");
        Refused("generation_config.json: 'temperature' = -1 is out of range");
        File.WriteAllText(_directory.File("generation_config.json"), """{ "repetition_penalty": 0 }""");
        Refused("generation_config.json: 'repetition_penalty' = 0 is out of range");
    }

    [Test]
    public void APromptComesFromStandardInput()
    {
        string[] args = ["generate", "--model", _directory.Path, "--max-tokens", "2"];
        Assert.That(RunWith("piped", args).Output, Does.StartWith("pipedkk"));
        Assert.That(RunWith("\uFEFFpiped", [.. args, "--prompt-file", "-"]).Output, Does.StartWith("pipedkk"));
        Assert.That(RunWith("piped", [.. args, "--prompt", "given"]).Output, Does.StartWith("givenkk"));
    }

    private static IEnumerable<string> SafetensorsHeaderOf(string path) =>
        JsonNode.Parse(SafetensorsText.Parts(File.ReadAllBytes(path)).Header)!.AsObject().Select(item => item.Key);

    private void Change(string file, Action<JsonObject> change)
    {
        JsonObject root = JsonNode.Parse(File.ReadAllText(_directory.File(file)))!.AsObject();
        change(root);
        File.WriteAllText(_directory.File(file), root.ToJsonString(new() { WriteIndented = true }), new UTF8Encoding(false));
    }

    private void Refused(params string[] expected)
    {
        (int code, string output, string error) = Run("generate", "--model", _directory.Path, "--prompt", "hi", "--max-tokens", "2");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.EqualTo(1));
            Assert.That(output, Is.Empty);
            Assert.That(error, Does.StartWith("error: "));
            Assert.That(error.TrimEnd('\n'), Does.Not.Contain('\n'));
            foreach (string part in expected)
            {
                Assert.That(error, Does.Contain(part));
            }
        }
    }

    private static (int Code, string Output, string Error) Run(params string[] args) => RunWith("", args);

    private static (int Code, string Output, string Error) RunWith(string input, string[] args)
    {
        using StringReader lines = new(input);
        using StringWriter output = new() { NewLine = "\n" }, error = new() { NewLine = "\n" };
        int code = LlamaProgram.Run(args, lines, output, error, showProgress: false);
        return (code, output.ToString(), error.ToString());
    }
}
