import torch
def test_x(original, parity, processor, collator, picture):
    v=parity("out_vision.pth")
    with torch.no_grad():
        t=original.model.vision_tower(v["pixel_values"],output_hidden_states=True)
        print([ (h.shape) for h in t.hidden_states])
        for i in range(3): print(i,(t.hidden_states[i+1]-v[f"vit_block_{i}"]).abs().max())
        print((t.last_hidden_state-v["ln_vision_output"]).abs().max())
        q=original.model.qformer(query_embeds=original.model.query_tokens.expand(2,-1,-1),encoder_hidden_states=t.last_hidden_state,output_hidden_states=True)
        for i,h in enumerate(q.hidden_states): print(i,(h-v[f"qformer_hidden_{i}"]).abs().max())
        f=original.get_image_features(v["pixel_values"])
        print((f.pooler_output-v["projected"]).abs().max())
    for name, ex in (("out_stage1.pth",{}),("out_stage2_seed0.pth",{"instruction":"Could you describe the contents of this image for me?"})):
        o=parity(name)
        collator.max_answer_tokens=o["max_txt_len"]
        b=collator([{"image":picture(),"text":a,**ex} for a in o["answers"]])
        print({k:v.shape for k,v in b.items()}, (b["attention_mask"]==o["attention_mask"]).all(), (b["labels"]==o["targets"]).all())
        b["pixel_values"]=o["pixel_values"]
        original.eval()
        out=original(**b)
        m=o["attention_mask"].bool()
        print((out.logits-o["logits"])[m].abs().max(), out.loss-o["loss"])
        for mode in (True,False):
            original.train(mode); original.zero_grad()
            l=original(**b).loss; l.backward()
            print(l-o["loss"], (original.model.projection.weight.grad-o["grad_llama_proj_weight"]).abs().max(),(original.model.projection.bias.grad-o["grad_llama_proj_bias"]).abs().max(), o["grad_llama_proj_weight"].abs().max())
    assert 0
