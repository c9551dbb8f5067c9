using Microsoft.Extensions.AI;
using Mustafar;
using Mustafar.Extensions.AI;
using Mustafar.Models.Chat;
using Mustafar.Models.Evaluation;
using Mustafar.Models.Generation;
using Mustafar.Models.Llama;
using TorchSharp;
using static TorchSharp.torch;

// Compiled ahead of time: an attention layer over a compressed cache, a file of it, and the steps of a model's cache.
using IDisposable noGrad = no_grad();
MustafarAttentionOptions options = new() { HiddenSize = 256, NumHeads = 4, NumKvHeads = 2, HeadDim = 64 };
using RotaryEmbedding rotary = new(new RotaryOptions { HeadDim = 64, Theta = 10000 });
using MustafarAttention attention = new(options, rotary);
using MustafarCache cache = new(batchSize: 1, options.KeyValueShape, ScalarType.Float32, CPU, MustafarPresets.HalfInFourBits);
attention.forward(randn(1, 300, 256), cache);
attention.forward(randn(1, 1, 256), cache);

string file = Path.GetTempFileName();
cache.Save(file, MustafarCacheFile.FingerprintOf(attention));
using MustafarCache restored = new(batchSize: 1, cache.KeyValueShape, ScalarType.Float32, CPU, cache.Options);
restored.Load(file, MustafarCacheFile.FingerprintOf(attention));
File.Delete(file);

using MustafarModelCache model = new(numLayers: 2, options.KeyValueShape, ScalarType.Float32);
int sequence = model.AddSequence();
using (CacheStep step = model.BeginStep([sequence], tokens: 100))
{
    for (int layer = 0; layer < model.NumLayers; layer++)
    {
        attention.forward(randn(1, 100, 256), step, layer);
    }

    step.Commit();
}

// A checkpoint: a chat that is saved and continued, a setting that is measured, and IChatClient.
string checkpoint = args[0];
Sampler greedy = new(SamplingParameters.Greedy);
int turns, settings;
using (LanguageModel language = LanguageModel.Load(checkpoint))
{
    ChatModel chat = new(language, ChatTemplate.Load(checkpoint, "llama3"));
    using (Conversation conversation = new(chat, ModelCache.Mustafar(language.Model, MustafarPresets.Default)))
    {
        _ = string.Concat(conversation.Reply([new ChatTurn(ChatRoles.User, "def add(a, b):")], greedy, maxTokens: 8));
        conversation.Save(file);
    }

    using Conversation continued = Conversation.Load(file, chat, ModelCache.Mustafar(language.Model, MustafarPresets.Default));
    File.Delete(file);
    _ = string.Concat(continued.Reply([new ChatTurn(ChatRoles.User, "class Stack:")], greedy, maxTokens: 8));
    turns = continued.Turns.Count;

    string results = Directory.CreateTempSubdirectory().FullName;
    EvaluationTask task = new PerplexityTask(language, File.ReadAllText(args[1]), context: 128, prefill: 64, windows: 1);
    EvaluationRun run = new([task], CacheSettingReader.WithDense([CacheSettingReader.Parse("4 bits: FourBits")]), results);
    EvaluationReport report = new([.. run.Run()]);
    report.Write(results);
    Directory.Delete(results, recursive: true);
    settings = report.Units.Count;
}

using IChatClient client = LlamaChatClient.Load(checkpoint, new LlamaChatClientOptions { ChatTemplate = "llama3" });
ChatOptions request = new()
{
    MaxOutputTokens = 8,
    AdditionalProperties = new() { ["chat_template_kwargs"] = new Dictionary<string, object?> { ["enable_thinking"] = false } },
};
ChatResponse response = await client.GetResponseAsync("def add(a, b):", request);
Console.WriteLine($"core: {restored.Length} and {model.LengthOf(sequence)} tokens, {attention.state_dict().Count} weights; " +
    $"models: {turns} turns, {settings} settings; chat: {response.Usage!.OutputTokenCount} tokens");
