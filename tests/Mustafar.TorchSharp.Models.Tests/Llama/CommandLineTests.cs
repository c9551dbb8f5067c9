using System.Text.Json;
using Mustafar.Examples.Llama.Commands;

namespace Mustafar.Tests.Llama;

[TestFixture]
public sealed class CommandLineTests
{
    [TestCase("generate", "--max-tokens", "8", "--prompt", "import os\n")]
    [TestCase("generate", "--max-tokens", "8", "--temperature", "0.8", "--top-k", "50", "--top-p", "0.9", "--seed", "4")]
    [TestCase("generate", "--max-tokens", "8", "--prompt", "import os\n", "--prompt", "def ")]
    [TestCase("generate", "--max-tokens", "4", "--best-of", "2", "--temperature", "0.8")]
    [TestCase("generate", "--max-tokens", "4", "--beams", "2")]
    [TestCase("compare", "--max-tokens", "4", "--prompt-file", "{short}")]
    [TestCase("compare", "--max-tokens", "4", "--temperature", "1", "--seed", "3", "--prompt-file", "{short}")]
    [TestCase("perplexity", "--windows", "1", "--context", "160", "--prefill", "130")]
    [TestCase("recall", "--contexts", "2", "--context", "256")]
    [TestCase("score", "--file", "{short}")]
    [TestCase("generate", "--max-tokens", "4", "--key-bits", "4", "--value-bits", "8", "--key-sparsity", "0")]
    [TestCase("generate", "--max-tokens", "4", "--key-selection", "output-aware", "--value-selection", "per-channel")]
    [TestCase("score", "--ids-file", "{ids}", "--prefill", "3")]
    public void JsonIsOneObjectAndAllOfStandardOutput(params string[] args)
    {
        foreach (string attention in (string[])["mustafar", "dense"])
        {
            (int code, string output, string error) = Run([.. args, "--json", "--attention", attention]);
            Assert.That(code, Is.Zero, error);
            using JsonDocument document = JsonDocument.Parse(output);
            using (Assert.EnterMultipleScope())
            {
                Assert.That(document.RootElement.ValueKind, Is.EqualTo(JsonValueKind.Object));
                Assert.That(document.RootElement.GetProperty("run").GetProperty("head_dim").GetInt32(), Is.EqualTo(128));
                Assert.That(output.TrimEnd('\n'), Does.Not.Contain('\n'));
            }
        }
    }

    [Test]
    public void GenerateStreamsTextAndReportsSpeedSizeAndSparsity()
    {
        (int code, string output, string error) = Run("generate", "--prompt", "import os\n", "--max-tokens", "8");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.Zero, error);
            Assert.That(output, Does.StartWith("import os\n"));
            Assert.That(output, Does.Contain("tokens/s").And.Contain("dense fp16").And.Contain("40 of 128"));
            Assert.That(error, Is.Empty);
        }
    }

    [Test]
    public void GenerateContinuesSeveralPromptsAsEachAlone()
    {
        string[] prompts = ["import os\n", "def add(a, b):\n"];
        string[] args = ["--max-tokens", "8", "--dtype", "float32", "--json"];
        (int code, string output, string error) = Run(["generate", "--prompt", prompts[0], "--prompt", prompts[1], .. args]);
        Assert.That(code, Is.Zero, error);
        using JsonDocument document = JsonDocument.Parse(output);
        JsonElement texts = document.RootElement.GetProperty("texts");
        for (int i = 0; i < prompts.Length; i++)
        {
            (_, string alone, _) = Run(["generate", "--prompt", prompts[i], .. args]);
            using JsonDocument expected = JsonDocument.Parse(alone);
            Assert.That(texts[i].GetProperty("text").GetString(), Is.EqualTo(expected.RootElement.GetProperty("text").GetString()));
        }

        (_, output, _) = Run("generate", "--prompt", prompts[0], "--prompt", prompts[1], "--max-tokens", "2");
        Assert.That(output, Does.StartWith("--- 2 tokens").And.Contain("\n" + prompts[1]).And.Contain("tokens/s"));
    }

    [TestCase("--best-of", "3", "--temperature", "0.9", "--seed", "2")]
    [TestCase("--beams", "3", "--length-penalty", "0.5")]
    public void GeneratePrintsTheBestContinuationsWithTheirScores(params string[] args)
    {
        const string prompt = "def add(a, b):\n";
        args = ["generate", "--prompt", prompt, "--max-tokens", "12", "--dtype", "float32", .. args];
        (int code, string json, string error) = Run([.. args, "--n-best", "3", "--json"]);
        Assert.That(code, Is.Zero, error);
        using JsonDocument document = JsonDocument.Parse(json);
        JsonElement[] texts = [.. document.RootElement.GetProperty("texts").EnumerateArray()];
        double[] scores = [.. texts.Select(text => text.GetProperty("score").GetDouble())];
        double power = document.RootElement.TryGetProperty("length_penalty", out JsonElement penalty) ? penalty.GetDouble() : 1;
        using (Assert.EnterMultipleScope())
        {
            Assert.That(texts.Select(text => text.GetProperty("text").GetString()), Is.Unique.And.Exactly(3).Items);
            Assert.That(scores, Is.Ordered.Descending);
            foreach (JsonElement text in texts)
            {
                double length = text.GetProperty("tokens").GetInt32();
                Assert.That(
                    text.GetProperty("score").GetDouble(),
                    Is.EqualTo(text.GetProperty("log_probability").GetDouble() / Math.Pow(length, power)).Within(1e-9));
                Assert.That(text.GetProperty("finish_reason").GetString(), Is.EqualTo(length < 12 ? "stop" : "length"));
            }
        }

        (code, string output, error) = Run(args);
        Assert.That(code, Is.Zero, error);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(output, Does.StartWith(FormattableString.Invariant($"--- 1: score {scores[0]:F4}, ")));
            Assert.That(output, Does.Contain($"\n{prompt}{texts[0].GetProperty("text").GetString()}\n").And.Not.Contain("--- 2"));
            Assert.That(output, Does.Contain("tokens/s").And.Contain("dense fp16").And.Contain("40 of 128"));
        }
    }

    [Test]
    public void OneBeamPrintsTheGreedyText()
    {
        string[] args = ["generate", "--prompt", "import os\n", "--max-tokens", "20", "--dtype", "float32", "--json"];
        using JsonDocument greedy = JsonDocument.Parse(Run(args).Output);
        using JsonDocument beam = JsonDocument.Parse(Run([.. args, "--beams", "1"]).Output);
        Assert.That(
            beam.RootElement.GetProperty("texts")[0].GetProperty("text").GetString(),
            Is.EqualTo(greedy.RootElement.GetProperty("text").GetString()));
    }

    [Test]
    public void SinksStayDenseAndAreReported()
    {
        string[] args = ["score", "--file", "{long}", "--local-window", "0", "--group-size", "32", "--key-sparsity", "0.9", "--json"];
        (int code, string output, string error) = Run([.. args, "--sinks", "32"]);
        Assert.That(code, Is.Zero, error);
        using JsonDocument sinks = JsonDocument.Parse(output);
        using JsonDocument none = JsonDocument.Parse(Run(args).Output);
        (_, string text, _) = Run("generate", "--max-tokens", "2", "--sinks", "3");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(sinks.RootElement.GetProperty("run").GetProperty("sinks").GetInt32(), Is.EqualTo(32));
            Assert.That(none.RootElement.GetProperty("run").GetProperty("sinks").GetInt32(), Is.Zero);
            Assert.That(
                sinks.RootElement.GetProperty("mean_nll").GetDouble(), Is.LessThan(none.RootElement.GetProperty("mean_nll").GetDouble()));
            Assert.That(text, Does.Contain("first 3 tokens dense"));
        }
    }

    [Test]
    public void BitsAndPatternsAreReported()
    {
        string[] args = ["score", "--file", "{long}", "--local-window", "0", "--group-size", "32", "--dtype", "bfloat16", "--json"];
        using JsonDocument pruned = JsonDocument.Parse(Run([.. args, "--key-sparsity", "0.5", "--value-sparsity", "0.5"]).Output);
        (int code, string output, string error) = Run(
            [.. args, "--key-sparsity", "0", "--value-sparsity", "0.5", "--balanced-values", "--key-bits", "4", "--value-bits", "8", "--key-channel-scales", "no"]);
        Assert.That(code, Is.Zero, error);
        using JsonDocument bits = JsonDocument.Parse(output);
        JsonElement run = bits.RootElement.GetProperty("run"), dense = pruned.RootElement.GetProperty("run");
        (_, string text, _) = Run("generate", "--max-tokens", "2", "--key-bits", "4", "--value-bits", "8", "--balanced-values", "--value-sparsity", "0.5");
        using (Assert.EnterMultipleScope())
        {
            Assert.That((dense.GetProperty("key_bits").GetInt32(), dense.GetProperty("value_bits").GetInt32()), Is.EqualTo((16, 16)));
            Assert.That((run.GetProperty("key_bits").GetInt32(), run.GetProperty("value_bits").GetInt32()), Is.EqualTo((4, 8)));
            Assert.That((run.GetProperty("keys_kept").GetInt32(), run.GetProperty("values_kept").GetInt32()), Is.EqualTo((128, 64)));
            Assert.That(run.GetProperty("key_channel_scales").GetBoolean(), Is.False);
            Assert.That(Bytes(bits), Is.LessThan(0.75 * Bytes(pruned)));
            Assert.That(run.GetProperty("balanced_keys").GetBoolean(), Is.False);
            Assert.That(run.GetProperty("balanced_values").GetBoolean(), Is.True);
            Assert.That(text, Does.Contain("4 bits with channel scales").And.Contain("balanced, 8 bits"));
        }

        static long Bytes(JsonDocument result) => result.RootElement.GetProperty("cache").GetProperty("compressed_bytes").GetInt64();
    }

    // Without a sliding window dense attention sees the first tokens anyway.
    [Test]
    public void DenseAttentionTakesSinksOnlyWithoutASlidingWindow()
    {
        string[] args = ["generate", "--attention", "dense", "--sinks", "4", "--max-tokens", "2"];
        using TemporaryDirectory directory = new TemporaryDirectory().With(Golden.Checkpoint);
        string config = File.ReadAllText(directory.File("config.json"))
            .Replace("LlamaForCausalLM", "MistralForCausalLM")
            .Replace("\"model_type\": \"llama\"", "\"model_type\": \"mistral\", \"sliding_window\": 48");
        File.WriteAllText(directory.File("config.json"), config);
        (int code, string output, string error) = Run([.. args, "--model", directory.Path]);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(Run(args).Code, Is.Zero);
            Assert.That(code, Is.EqualTo(1));
            Assert.That(output, Is.Empty);
            Assert.That(error, Does.StartWith("error: --sinks: ").And.Contain("sliding window of 48 tokens"));
        }

        (code, _, error) = Run("generate", "--sinks", "4", "--max-tokens", "2", "--model", directory.Path);
        Assert.That(code, Is.Zero, error);
    }

    [Test]
    public void ChatReadsOnlyTheNewTurnsAndBeginsAnewWhenAsked()
    {
        string[] args = ["chat", "--chat-template", "llama3", "--max-tokens", "6", "--system", "Write Python."];
        (int code, string output, string error) = Chat("Hello\n\nAgain\n/reset\nHello\n/exit\nnever", [.. args, "--json"]);
        Assert.That(code, Is.Zero, error);
        using JsonDocument document = JsonDocument.Parse(output);
        JsonElement[] exchanges = [.. document.RootElement.GetProperty("exchanges").EnumerateArray()];
        (int Cached, int New, int Reply)[] counts = [.. exchanges.Select(exchange => (
            exchange.GetProperty("cached_tokens").GetInt32(),
            exchange.GetProperty("new_tokens").GetInt32(),
            exchange.GetProperty("reply_tokens").GetInt32()))];
        using (Assert.EnterMultipleScope())
        {
            Assert.That(counts, Has.Length.EqualTo(3));
            Assert.That(counts[0].Cached, Is.Zero);
            Assert.That(counts[1].Cached, Is.EqualTo(counts[0].New + counts[0].Reply - 1), "the last token is read with the next turn");
            Assert.That(counts[1].New, Is.LessThan(counts[0].New), "no system and no beginning");
            Assert.That(counts[2], Is.EqualTo(counts[0]));
            Assert.That(exchanges[2].GetProperty("assistant").GetString(), Is.EqualTo(exchanges[0].GetProperty("assistant").GetString()));
        }

        (code, output, error) = Chat("Hello\n", args);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.Zero, error);
            Assert.That(output, Does.Not.Contain("> ").And.Contain("--- read").And.Contain("dense fp16"));
        }
    }

    [Test]
    public void AChatGoesOnFromAFile()
    {
        using TemporaryDirectory directory = new();
        string[] args = ["chat", "--chat-template", "llama3", "--max-tokens", "6", "--json"];
        (_, string whole, _) = Chat("Hello\nAgain\n", args);
        (int code, _, string error) = Chat("Hello\n", [.. args, "--save", directory.File("chat")]);
        Assert.That(code, Is.Zero, error);
        (code, string output, error) = Chat("Again\n", [.. args, "--load", directory.File("chat"), "--save", directory.File("chat")]);
        Assert.That(code, Is.Zero, error);
        using JsonDocument expected = JsonDocument.Parse(whole), actual = JsonDocument.Parse(output);
        Assert.That(
            actual.RootElement.GetProperty("exchanges")[0].GetRawText(), Is.EqualTo(expected.RootElement.GetProperty("exchanges")[1].GetRawText()));
        Assert.That(actual.RootElement.GetProperty("restore_seconds").GetDouble(), Is.Positive);
        (code, output, _) = Chat("", [.. args[..^1], "--load", directory.File("chat")]);
        Assert.That(code, Is.Zero);
        Assert.That(output, Does.StartWith("--- 4 turns").And.Contain("restored in"));
    }

    [Test]
    public void ATextGoesOnFromAFile()
    {
        using TemporaryDirectory directory = new();
        string file = directory.File("text");
        string[] args = ["generate", "--dtype", "float32", "--json"];
        string whole = Text(["--prompt", "import os\n", "--max-tokens", "20"]);
        string first = Text(["--prompt", "import os\n", "--max-tokens", "12", "--save", file]);
        string second = Text(["--load", file, "--max-tokens", "8", "--save", file]);
        Assert.That(first + second, Is.EqualTo(whole));

        // With a new prompt after it.
        string third = Text(["--load", file, "--prompt", "\ndef add(a, b):", "--max-tokens", "8"]);
        Assert.That(third, Is.EqualTo(Text(["--prompt", $"import os\n{whole}\ndef add(a, b):", "--max-tokens", "8"])));
        (int code, string output, string error) = Run("generate", "--dtype", "float32", "--load", file, "--max-tokens", "1");
        Assert.That(code, Is.Zero, error);
        Assert.That(output, Does.Contain("s to the first token:").And.Contain("tokens restored in"));
        (code, _, error) = Run("generate", "--load", file);
        Assert.That(code, Is.EqualTo(1));
        Assert.That(error, Does.Contain("mustafar.dtype"));

        string Text(string[] more)
        {
            (int code, string output, string error) = Run([.. args, .. more]);
            Assert.That(code, Is.Zero, error);
            using JsonDocument document = JsonDocument.Parse(output);
            return document.RootElement.GetProperty("text").GetString()!;
        }
    }

    [Test]
    public void GenerateRunsWithoutAnyOption()
    {
        (int code, string output, string error) = Run("generate");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.Zero, error);
            Assert.That(output, Does.Contain("tokens/s"));
        }
    }

    [Test]
    public void ASeedGivesTheSameText()
    {
        string Text(string seed)
        {
            (_, string output, _) = Run(
                "generate", "--prompt", "def ", "--max-tokens", "20", "--temperature", "1", "--seed", seed, "--json", "--dtype", "float32");
            using JsonDocument document = JsonDocument.Parse(output);
            return document.RootElement.GetProperty("text").GetString()!;
        }

        string first = Text("1");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(Text("1"), Is.EqualTo(first));
            Assert.That(Text("2"), Is.Not.EqualTo(first));
        }
    }

    [Test]
    public void ScoreGivesTheGoldenNumbers()
    {
        using TemporaryDirectory directory = new();
        File.WriteAllText(directory.File("ids.json"), Golden.Json.GetProperty("prompt_ids").GetRawText());
        (int code, string output, string error) = Run(
            "score", "--ids-file", directory.File("ids.json"), "--attention", "dense", "--dtype", "float32", "--json");
        Assert.That(code, Is.Zero, error);
        using JsonDocument document = JsonDocument.Parse(output);
        double[] nll = [.. document.RootElement.GetProperty("nll").EnumerateArray().Select(item => item.GetDouble())];
        Assert.That(nll, Is.EqualTo(Golden.Floats("nll_all").Select(value => (double)value)).Within(1e-3));
    }

    [TestCase(2, "Required command", new string[0])]
    [TestCase(2, "generate has no option '--nonsense'", new[] { "generate", "--nonsense" })]
    [TestCase(2, "did you mean '--temperature'?", new[] { "generate", "--temprature", "1" })]
    [TestCase(2, "'generat' is not a command; did you mean 'generate'?", new[] { "generat", "--prompt", "a" })]
    [TestCase(2, "'run' is not a command; the commands are generate, chat, compare, perplexity, recall, score", new[] { "run" })]
    [TestCase(2, "expected an option, but got 'world'", new[] { "generate", "--max-tokens", "1", "world" })]
    [TestCase(2, "--temperature: expected a number such as 0.5, but got '0,5'; use a decimal point, not a comma.", new[] { "generate", "--temperature", "0,5" })]
    [TestCase(2, "--key-sparsity: expected a number such as 0.5, but got '1,5'", new[] { "perplexity", "--key-sparsity", "1,5" })]
    [TestCase(2, "--max-tokens: expected a whole number, but got '1,000'", new[] { "generate", "--max-tokens", "1,000" })]
    [TestCase(2, "--threads", new[] { "generate", "--threads" })]
    [TestCase(1, "--save: ", new[] { "generate", "--save", "no-such-directory/file" })]
    [TestCase(1, "the directory doesn't exist; if this is a model on the Hugging Face Hub, download it first (hf download meta-llama/Llama-3.2-1B", new[] { "generate", "--model", "meta-llama/Llama-3.2-1B" })]
    [TestCase(1, "but this is a file", new[] { "generate", "--model", "{short}" })]
    [TestCase(2, "--max-tokens: expected a whole number, but got 'many'", new[] { "generate", "--max-tokens", "many" })]
    [TestCase(2, "--attention: expected mustafar or dense, but got 'sparse'", new[] { "generate", "--attention", "sparse" })]
    [TestCase(2, "--dtype: expected auto, float32, float16 or bfloat16, but got 'int8'", new[] { "generate", "--dtype", "int8" })]
    [TestCase(1, "--max-tokens", new[] { "generate", "--max-tokens", "0" })]
    [TestCase(1, "--threads", new[] { "generate", "--threads", "0" })]
    [TestCase(1, "cpu, cuda or cuda:N", new[] { "generate", "--device", "tpu" })]
    [TestCase(1, "doesn't exist", new[] { "generate", "--model", "no-such-directory" })]
    [TestCase(1, "doesn't exist", new[] { "generate", "--prompt-file", "no-such-file" })]
    [TestCase(1, "both", new[] { "generate", "--prompt-file", "a", "--prompt", "b" })]
    [TestCase(1, "got both", new[] { "generate", "--best-of", "2", "--beams", "2" })]
    [TestCase(1, "--beams: expected one prompt, but got 2", new[] { "generate", "--beams", "2", "--prompt", "a", "--prompt", "b" })]
    [TestCase(1, "--best-of: expected one prompt, but got 2", new[] { "generate", "--best-of", "2", "--prompt", "a", "--prompt", "b" })]
    [TestCase(1, "--beams: expected a number above 0", new[] { "generate", "--beams", "0" })]
    [TestCase(1, "--best-of: expected a number above 0", new[] { "generate", "--best-of", "-1" })]
    [TestCase(1, "--n-best: expected at most 2", new[] { "generate", "--beams", "2", "--n-best", "3" })]
    [TestCase(1, "--n-best: needs --best-of or --beams", new[] { "generate", "--n-best", "3" })]
    [TestCase(1, "--length-penalty: needs --beams", new[] { "generate", "--best-of", "2", "--length-penalty", "1" })]
    [TestCase(1, "--length-penalty: expected a finite number, but got NaN", new[] { "generate", "--beams", "2", "--length-penalty", "NaN" })]
    [TestCase(1, "--temperature: a beam search does not sample", new[] { "generate", "--beams", "2", "--temperature", "0.5" })]
    [TestCase(1, "--top-k: a beam search does not sample", new[] { "generate", "--beams", "2", "--top-k", "5" })]
    [TestCase(1, "--seed: a beam search does not sample", new[] { "generate", "--beams", "2", "--seed", "1" })]
    [TestCase(1, "--best-of: expected a --temperature above 0", new[] { "generate", "--best-of", "2" })]
    [TestCase(1, "--sinks: expected 0 to 16777216 tokens, but got -1", new[] { "generate", "--sinks", "-1" })]
    [TestCase(1, "expected one prompt", new[] { "generate", "--prompt", "a", "--prompt", "b", "--save", "c" })]
    [TestCase(1, "expected a compressed cache", new[] { "generate", "--attention", "dense", "--save", "c" })]
    [TestCase(1, "--load and --save: expected one continuation", new[] { "generate", "--beams", "2", "--save", "c" })]
    [TestCase(1, "expected a compressed cache", new[] { "chat", "--attention", "dense", "--load", "c" })]
    [TestCase(1, "no-such-file", new[] { "generate", "--load", "no-such-file" })]
    [TestCase(1, "another format", new[] { "generate", "--load", "{short}" })]
    [TestCase(1, "no-such-file", new[] { "chat", "--chat-template", "llama3", "--load", "no-such-file" })]
    [TestCase(1, "--chat-template: Expected llama3, mistral, chatml, or the path of a Jinja file, but got 'jinja'", new[] { "chat", "--chat-template", "jinja" })]
    [TestCase(1, "--chat-template-kwargs: expected a JSON object, but got {", new[] { "chat", "--chat-template", "llama3", "--chat-template-kwargs", "{" })]
    [TestCase(1, "--chat-template-kwargs: Expected a JSON object with variables for the chat template, but got array.", new[] { "chat", "--chat-template", "llama3", "--chat-template-kwargs", "[]" })]
    [TestCase(1, "--chat-template-kwargs: Expected variables other than those of the chat itself, but got 'messages'.", new[] { "chat", "--chat-template", "llama3", "--chat-template-kwargs", "{\"messages\": 1}" })]
    [TestCase(1, "no chat template", new[] { "chat" })]
    [TestCase(1, "<|im_start|>", new[] { "chat", "--chat-template", "chatml" })]
    [TestCase(1, "--key-sparsity: expected a share of the channels, 0 to less than 1, but got 1.5.", new[] { "generate", "--key-sparsity", "1.5" })]
    [TestCase(1, "--key-bits: expected 16 (the cache's own type, not quantised), 8 or 4, but got 3.", new[] { "generate", "--key-bits", "3" })]
    [TestCase(1, "--value-bits: expected 16", new[] { "generate", "--value-bits", "0" })]
    [TestCase(1, "--key-channel-scales: expected --key-bits 8 or 4 with yes", new[] { "generate", "--key-channel-scales", "yes" })]
    [TestCase(1, "--key-rotation: expected --key-bits 8 or 4 and --key-sparsity 0", new[] { "generate", "--key-rotation", "--key-bits", "4" })]
    [TestCase(2, "--key-selection: expected magnitude, output-aware or structured, but got 'best'", new[] { "generate", "--key-selection", "best" })]
    [TestCase(1, "KeySelection", new[] { "generate", "--key-selection", "structured", "--balanced-keys" })]
    [TestCase(2, "--key-channel-scales: expected auto, yes or no, but got 'on'", new[] { "generate", "--key-channel-scales", "on" })]
    [TestCase(1, "--group-size: expected a multiple of 32", new[] { "generate", "--group-size", "33" })]
    [TestCase(1, "--top-p: expected a probability from 0 to 1, but got 2.", new[] { "generate", "--top-p", "2" })]
    [TestCase(1, "--file or --ids-file", new[] { "score" })]
    [TestCase(1, "expected token ids", new[] { "score", "--ids-file", "{short}" })]
    [TestCase(1, "--prefill", new[] { "score", "--ids-file", "{ids}", "--prefill", "100" })]
    [TestCase(1, "--prefill", new[] { "perplexity", "--context", "100", "--prefill", "100" })]
    [TestCase(1, "at least 2048 tokens", new[] { "perplexity", "--file", "{short}" })]
    [TestCase(1, "room", new[] { "recall", "--context", "10" })]
    public void ErrorsAreOneLineOnStandardError(int expectedCode, string expected, string[] args)
    {
        (int code, string output, string error) = Run([.. args, .. args.Length > 0 ? ["--json"] : Array.Empty<string>()]);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.EqualTo(expectedCode));
            Assert.That(output, Is.Empty);
            Assert.That(error, Does.StartWith("error: ").And.Contain(expected));
            Assert.That(error.TrimEnd('\n'), Does.Not.Contain('\n'));
            Assert.That(error, Does.Not.Contain("   at "));
        }
    }

    [Test]
    public void ADamagedCheckpointIsNamed()
    {
        using TemporaryDirectory directory = new TemporaryDirectory().With(Golden.Checkpoint);
        File.Delete(directory.File("tokenizer.json"));
        (int code, _, string error) = Run("generate", "--model", directory.Path);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.EqualTo(1));
            Assert.That(error, Does.Contain("tokenizer.json"));
        }
    }

    [Test]
    public void TensorsThatAreNotUsedAreNamed()
    {
        using TemporaryDirectory directory = new TemporaryDirectory().With(Golden.Checkpoint);
        string config = File.ReadAllText(directory.File("config.json")).Replace("\"num_hidden_layers\": 6", "\"num_hidden_layers\": 5");
        File.WriteAllText(directory.File("config.json"), config);
        (int code, string output, string error) = Run("generate", "--model", directory.Path, "--max-tokens", "2", "--json");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.Zero, error);
            Assert.That(error, Does.StartWith("warning: 9 tensors").And.Contain("model.layers.5."));
            Assert.That(output, Does.StartWith("{"));
        }
    }

    [Test]
    public void HelpNamesEveryCommand()
    {
        (int code, string output, _) = Run("--help");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(code, Is.Zero);
            foreach (string name in (string[])["generate", "chat", "compare", "perplexity", "recall", "score"])
            {
                Assert.That(output, Does.Contain(name));
            }
        }
    }

    private static (int Code, string Output, string Error) Run(params string[] args) => Chat("", args);

    private static (int Code, string Output, string Error) Chat(string input, params string[] args)
    {
        using StringReader lines = new(input);
        using TemporaryDirectory directory = new();
        File.WriteAllText(directory.File("short"), "import os\nprint(os.getcwd())\n");
        File.WriteAllText(directory.File("long"), string.Concat(Enumerable.Range(0, 30).Select(i => $"value_{i} = compute({i})\n")));
        File.WriteAllText(directory.File("ids"), "8184, 323 4295\n[869, 258, 1998]");
        string[] filled = [.. args.Select(arg => arg.Replace("{short}", directory.File("short")).Replace("{ids}", directory.File("ids"))
            .Replace("{long}", directory.File("long")))];
        using StringWriter output = new() { NewLine = "\n" };
        using StringWriter error = new() { NewLine = "\n" };
        int code = LlamaProgram.Run(filled, lines, output, error, showProgress: false);
        return (code, output.ToString(), error.ToString());
    }
}
