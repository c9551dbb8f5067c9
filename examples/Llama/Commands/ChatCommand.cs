using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using System.Text;
using Mustafar.Examples.Llama.Chat;
using Mustafar.Examples.Llama.Generation;
using Mustafar.Examples.Llama.Model;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>A chat, a line of input per turn, over one cache.</summary>
internal sealed class ChatCommand : LlamaCommand
{
    private const string Reset = "/reset";
    private const string Exit = "/exit";

    private readonly TextReader _input;
    private readonly Option<string?> _system = new("--system") { Description = "What the system says first.", HelpName = "TEXT" };
    private readonly Option<string?> _template = new("--chat-template")
    {
        Description = "How a chat is written down, in place of what the checkpoint says.",
    };

    private readonly Option<string?> _load = new("--load") { Description = "Go on with a chat that --save wrote.", HelpName = "FILE" };
    private readonly Option<string?> _save = new("--save") { Description = "Write the chat and its compressed cache to a file at its end.", HelpName = "FILE" };

    private readonly GenerationOptions _generation = new(maxTokens: 512);

    public ChatCommand(TextReader input)
        : base("chat", $"Chat: each line of input is a turn. {Reset} begins anew, {Exit} ends.")
    {
        _input = input;
        _template.AcceptOnlyFromAmong([.. ChatTemplates.Names]);
        Add([_system, _template, _load, _save, .. _generation.All]);
    }

    protected override void Run(ParseResult arguments, CommonSettings settings, ConsoleOutput output)
    {
        SamplingOptions sampling = _generation.Sampling(arguments);
        int maxTokens = Positive(arguments, _generation.MaxTokens);
        (string? load, string? save) = (arguments.GetValue(_load), arguments.GetValue(_save));
        RequireCompressed(settings, load, save);
        using ModelSession session = ModelSession.Load(settings, output);
        ChatModel model = ChatModel.Of(session.Language, arguments.GetValue(_template));
        ChatTurn[] opening = arguments.GetValue(_system) is string system ? [new ChatTurn(ChatSpeaker.System, system)] : [];
        using ModelCache cache = session.NewCache();
        Stopwatch watch = Stopwatch.StartNew();
        using Conversation conversation = load is null ? new Conversation(model, cache) : Conversation.Load(load, model, cache);
        double? restoreSeconds = load is null ? null : watch.Elapsed.TotalSeconds;
        if (restoreSeconds is double seconds)
        {
            output.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"--- {conversation.Turns.Count} turns, {conversation.CachedTokens} cached tokens, restored in {seconds:F3} s"));
        }

        List<Exchange> exchanges = [];
        while (Ask(output) is string line && line != Exit)
        {
            if (line == Reset)
            {
                conversation.Reset();
                output.WriteLine("--- a new chat");
            }
            else if (line.Length > 0)
            {
                ChatTurn user = new(ChatSpeaker.User, line);
                Sampler sampler = new(sampling with { Seed = unchecked(sampling.Seed + exchanges.Count) });
                exchanges.Add(Reply(conversation, conversation.Turns.Count == 0 ? [.. opening, user] : [user], sampler, maxTokens, output));
            }
        }

        if (save is not null)
        {
            conversation.Save(save);
        }

        output.WriteJson(new Result(
            RunReport.Of(session), restoreSeconds, exchanges, MemoryReport.Of(conversation.CachedTokens, conversation.Memory)));
    }

    private static Exchange Reply(
        Conversation conversation, ChatTurn[] turns, Sampler sampler, int maxTokens, ConsoleOutput output)
    {
        StringBuilder reply = new();
        foreach (string part in conversation.Reply(turns, sampler, maxTokens))
        {
            reply.Append(part);
            output.Write(part);
        }

        ReplyUsage usage = conversation.LastUsage;
        output.WriteLine();
        output.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"--- read {usage.NewTokens} tokens after {usage.CachedTokens} cached, wrote {usage.ReplyTokens}; cache ")
            + MemoryReport.Of(conversation.CachedTokens, conversation.Memory));
        return new Exchange(
            turns[^1].Text,
            reply.ToString(),
            usage.CachedTokens,
            usage.NewTokens,
            usage.ReplyTokens,
            usage.End == ReplyEnd.Length ? "length" : "stop");
    }

    private string? Ask(ConsoleOutput output)
    {
        output.Write("> ");
        string? line = _input.ReadLine();
        if (line is null)
        {
            output.WriteLine();
        }

        return line;
    }

    private sealed record Exchange(string User, string Assistant, int CachedTokens, int NewTokens, int ReplyTokens, string FinishReason);

    private sealed record Result(RunReport Run, double? RestoreSeconds, List<Exchange> Exchanges, MemoryReport Cache);
}
